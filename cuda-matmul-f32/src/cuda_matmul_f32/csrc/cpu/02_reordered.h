// CPU 2: the same three loops in the order i, k, j.
//
// Removes: the walk down B's columns. Innermost now runs along a row of B and a row of C: 16 floats
//   of each cache line are used instead of one, and neighbouring outputs are independent sums, so
//   the compiler may use vector instructions.
// Leaves: each vector multiply-add loads and stores C, and all of B streams through the caches once
//   per row of A: at 1024 x 1024 that is 4 MiB a row, more than most L2 caches hold.
#pragma once

#include "cpu/clear.h"
#include "problem.h"

// c[j] += a * b[j]. Restrict tells the compiler that C is not B, else it could not vectorise; for a
// B whose columns are not adjacent it makes a second, scalar version of the loop by itself.
inline void add_scaled_row(float* __restrict__ c, float a, const float* __restrict__ b,
                           int64_t b_stride, int64_t n) {
  for (int64_t j = 0; j < n; ++j) c[j] += a * b[j * b_stride];
}

inline void reordered(const Problem& p) {
  clear(p);
  for (int64_t i = 0; i < p.M; ++i) {
    for (int64_t k = 0; k < p.K; ++k) {
      add_scaled_row(p.c + i * p.c_stride, p.a(i, k), &p.b(k, 0), p.b.col_stride, p.N);
    }
  }
}
