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
     {{"async_pipeline", 2.02, 0.00078},
      {"hopper", 1.05, 0.000611},
      {"skinny", 8.86, 0.000517},
      {"split_k", 2.51, 0.000532}}},
};
// clang-format on
