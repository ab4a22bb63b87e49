// CPU 4: packed panels and a register tile, on one core.
//
// Removes: the load and store of C around each multiply-add. A tile of C stays in registers for a
//   whole block of K (micro_kernel.h), and both inputs are packed into the order in which they are
//   read (pack.h), so every load is sequential and no page or cache set is hit more than it must.
// Leaves: the other cores; and the packing, which for a matrix with few rows costs as much as the
//   product itself.
#pragma once

#include <algorithm>

#include "cpu/clear.h"
#include "cpu/micro_kernel.h"
#include "cpu/pack.h"
#include "problem.h"

// Block sizes, by the cache that a block has to stay in while it is reused.
constexpr int64_t kBlockK = 256;          // a panel of A, kRows x kBlockK: 14 KiB at most, L1
constexpr int64_t kBlockN = kCols * 16;   // a block of B, kBlockK x kBlockN: 512 KiB at most, L2
constexpr int64_t kBlockM = kRows * 256;  // a block of A, kBlockM x kBlockK: 3.5 MiB at most, L3

inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

// Panel `index` of the packed block of A whose first element is (row, k).
inline void pack_a(const Problem& p, int64_t row, int64_t rows, int64_t k, int64_t depth,
                   int64_t index, float* packed) {
  const int64_t first = index * kRows;
  pack_panel<kRows>(&p.a(row + first, k), p.a.row_stride, p.a.col_stride, rows - first, depth,
                    packed + first * depth);
}

// Panel `index` of the packed block of B whose first element is (k, col).
inline void pack_b(const Problem& p, int64_t k, int64_t depth, int64_t col, int64_t cols,
                   int64_t index, float* packed) {
  const int64_t first = index * kCols;
  pack_panel<kCols>(&p.b(k, col + first), p.b.col_stride, p.b.row_stride, cols - first, depth,
                    packed + first * depth);
}

// C[rows, cols] (+)= packed A x packed B. A panel of A is the one that stays in L1, while all
// panels of B pass by from L2.
inline void multiply_packed(const float* a, const float* b, int64_t depth, float* c,
                            int64_t c_stride, int64_t rows, int64_t cols, bool accumulate) {
  for (int64_t i = 0; i < rows; i += kRows) {
    for (int64_t j = 0; j < cols; j += kCols) {
      micro_kernel(a + i * depth, b + j * depth, depth, c + i * c_stride + j, c_stride, rows - i,
                   cols - j, accumulate);
    }
  }
}

inline void register_blocked(const Problem& p) {
  if (p.K == 0) clear(p);
  thread_local Scratch a_scratch, b_scratch;
  const int64_t depth_max = std::min(kBlockK, p.K);
  float* a = a_scratch.at_least(round_up(std::min(kBlockM, p.M), kRows) * depth_max);
  float* b = b_scratch.at_least(round_up(std::min(kBlockN, p.N), kCols) * depth_max);

  for (int64_t i = 0; i < p.M; i += kBlockM) {
    const int64_t rows = std::min(kBlockM, p.M - i);
    for (int64_t k = 0; k < p.K; k += kBlockK) {
      const int64_t depth = std::min(kBlockK, p.K - k);
      for (int64_t x = 0; x < ceil_div(rows, kRows); ++x) pack_a(p, i, rows, k, depth, x, a);
      for (int64_t j = 0; j < p.N; j += kBlockN) {
        const int64_t cols = std::min(kBlockN, p.N - j);
        for (int64_t x = 0; x < ceil_div(cols, kCols); ++x) pack_b(p, k, depth, j, cols, x, b);
        multiply_packed(a, b, depth, p.c + i * p.c_stride + j, p.c_stride, rows, cols, k > 0);
      }
    }
  }
}
