// C = 0, for the CPU rungs that add to C step by step.
#pragma once

#include <algorithm>

#include "problem.h"

inline void clear(const Problem& p) {
  for (int64_t i = 0; i < p.M; ++i) std::fill_n(p.c + i * p.c_stride, p.N, 0.0f);
}
