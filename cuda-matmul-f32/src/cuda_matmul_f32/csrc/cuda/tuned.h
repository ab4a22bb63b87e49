// Written by `python benchmark.py --tune` on the GPUs named here; not by hand.
#pragma once

struct TunedRung {
  const char* name;
  double launch_us;     // what a call takes whatever it computes
  double us_per_cycle;  // of the rung's own estimate
};

struct Tuned {
  int compute_capability;  // 90 is 9.0
  const char* gpu;
  TunedRung rungs[4];
};

// clang-format off
constexpr Tuned kTuned[] = {
    {90,
     "NVIDIA H100 80GB HBM3",
     {{"async_pipeline", 1.97, 0.000783},
      {"hopper", 0, 0.000549},
      {"skinny", 8.21, 0.000545},
      {"split_k", 1.85, 0.000512}}},
};
// clang-format on
