// CPU 3: loop order i, k, j inside tiles that stay in cache.
//
// Removes: B streaming from memory once per row of A. A 64 x 512 tile of B (128 KiB) fits in any L2
//   cache and is used by every row of A before the next one is fetched; the 2 KiB of C's row that
//   it updates stay in L1.
// Leaves: C still passes through a register only for one multiply-add: two loads and one store per
//   vector FMA, where the core could do one or two FMAs a cycle but only one store.
#pragma once

#include <algorithm>

#include "cpu/02_reordered.h"
#include "cpu/clear.h"
#include "problem.h"

inline void cache_tiled(const Problem& p) {
  constexpr int64_t kTileK = 64;
  constexpr int64_t kTileN = 512;
  clear(p);
  for (int64_t k0 = 0; k0 < p.K; k0 += kTileK) {
    const int64_t k1 = std::min(k0 + kTileK, p.K);
    for (int64_t j0 = 0; j0 < p.N; j0 += kTileN) {
      const int64_t width = std::min(kTileN, p.N - j0);
      for (int64_t i = 0; i < p.M; ++i) {
        for (int64_t k = k0; k < k1; ++k) {
          add_scaled_row(p.c + i * p.c_stride + j0, p.a(i, k), &p.b(k, j0), p.b.col_stride, width);
        }
      }
    }
  }
}
