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
     {{"async_pipeline", 2.28, 0.0008},
      {"hopper", 0, 0.000541},
      {"skinny", 8.77, 0.000521},
      {"split_k", 2.26, 0.000505}}},
};
// clang-format on
