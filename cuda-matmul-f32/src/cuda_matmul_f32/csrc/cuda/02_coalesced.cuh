// CUDA 2: the same kernel with a warp side by side in a ROW of C. Two lines differ.
//
// Removes: the scattered access. In each step of k the warp reads 32 adjacent values of B, 128
//   bytes in 4 full sectors instead of 32 sectors for 1/8 of their bytes; its value of A is one for
//   all, and its 32 outputs are stored together.
// Leaves: two load instructions for each multiply-add. The load units, not the arithmetic, set the
//   pace: an SM takes one warp-wide load a cycle or less but could start four warp-wide FMAs. And
//   every value of A is fetched again by each of the N columns that need it, of B by each of M
//   rows.
#pragma once

#include "cuda/launch.cuh"

constexpr Tile kCoalescedTile{32, 32, 1024};

__global__ void __launch_bounds__(kCoalescedTile.threads) coalesced_kernel(const Problem problem) {
  const Origin tile = tile_origin<kCoalescedTile.rows, kCoalescedTile.cols>(problem);
  const Problem p = problem.at(tile.product);
  const int64_t row = tile.row + threadIdx.x / kCoalescedTile.cols;
  const int64_t col = tile.col + threadIdx.x % kCoalescedTile.cols;  // neighbours in the warp: cols
  if (row >= p.M || col >= p.N) return;

  float sum = 0.0f;
  for (int64_t k = 0; k < p.K; ++k) sum += p.a(row, k) * p.b(k, col);
  p.c[row * p.c_stride + col] = sum;
}

inline cudaError_t launch_coalesced(const Problem& p, void*, cudaStream_t stream) {
  return launch_tiles(coalesced_kernel, kCoalescedTile, p, stream);
}
