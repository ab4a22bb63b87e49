// CPU 5: rung 4 on all cores.
//
// Removes: the idle cores. All threads pack the panels of one large block of A and of B, which all
//   then read; each multiplies its own tiles of C, so no two threads write the same element
//   and the result has the same bits for any number of threads.
// Leaves: parallel work along K (a small C with a long K keeps few cores busy), and the padding of
// a
//   matrix with a single row or column to a whole register tile.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/04_register_blocked.h"
#include "problem.h"

inline void threaded(const Problem& p) {
  // Larger than rung 4's block of A, so that there are tiles for all threads between two barriers.
  constexpr int64_t kSharedM = kBlockM * 8;
  constexpr int64_t kTileM = kRows * 8;
  constexpr int64_t kTileN = kCols * 8;

  if (p.K == 0) std::fill_n(p.c, p.M * p.N, 0.0f);
  // The calling thread's scratch; the others get its address. Its size is bounded by the blocks'.
  thread_local Scratch a_scratch, b_scratch;
  const int64_t depth_max = std::min(kBlockK, p.K);
  float* a = a_scratch.at_least(round_up(std::min(kSharedM, p.M), kRows) * depth_max);
  float* b = b_scratch.at_least(round_up(std::min(kBlockN, p.N), kCols) * depth_max);

  for (int64_t j = 0; j < p.N; j += kBlockN) {
    const int64_t cols = std::min(kBlockN, p.N - j);
    for (int64_t k = 0; k < p.K; k += kBlockK) {
      const int64_t depth = std::min(kBlockK, p.K - k);
      at::parallel_for(0, ceil_div(cols, kCols), 4, [&](int64_t first, int64_t last) {
        for (int64_t x = first; x < last; ++x) pack_b(p, k, depth, j, cols, x, b);
      });
      for (int64_t i = 0; i < p.M; i += kSharedM) {
        const int64_t rows = std::min(kSharedM, p.M - i);
        at::parallel_for(0, ceil_div(rows, kRows), 4, [&](int64_t first, int64_t last) {
          for (int64_t x = first; x < last; ++x) pack_a(p, i, rows, k, depth, x, a);
        });
        const int64_t tiles_n = ceil_div(cols, kTileN);
        const int64_t tiles = ceil_div(rows, kTileM) * tiles_n;
        at::parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
          for (int64_t tile = first; tile < last; ++tile) {
            const int64_t row = tile / tiles_n * kTileM;
            const int64_t col = tile % tiles_n * kTileN;
            multiply_packed(a + row * depth, b + col * depth, depth,
                            p.c + (i + row) * p.N + j + col, p.N, std::min(kTileM, rows - row),
                            std::min(kTileN, cols - col), k > 0);
          }
        });
      }
    }
  }
}
