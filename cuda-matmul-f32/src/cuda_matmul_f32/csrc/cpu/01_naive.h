// CPU 1: the definition, three loops, one dot product per output.
//
// Removes: nothing, it is where the climb starts.
// Leaves: the innermost loop walks down a column of B, so each step touches another cache line and
//   uses 4 of its 64 bytes; and each addition waits for the one before (about 4 cycles), which also
//   forbids vector instructions, since reordering a float sum would change its result.
#pragma once

#include "problem.h"

inline void naive(const Problem& p) {
  for (int64_t i = 0; i < p.M; ++i) {
    for (int64_t j = 0; j < p.N; ++j) {
      float sum = 0.0f;
      for (int64_t k = 0; k < p.K; ++k) sum += p.a(i, k) * p.b(k, j);
      p.c[i * p.c_stride + j] = sum;
    }
  }
}
