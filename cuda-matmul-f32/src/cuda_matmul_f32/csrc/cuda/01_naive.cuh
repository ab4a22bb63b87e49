// CUDA 1: one thread per output, and the 32 threads of a warp side by side in a COLUMN of C.
//
// Removes: nothing, it is where the climb starts.
// Leaves: in each step of k the warp reads 32 values of A that lie K elements apart, so 32 separate
//   32-byte sectors of which it uses 4 bytes each: 1024 bytes moved for 128 used, 1/8. The one
//   value of B is the same for the whole warp. Stores to C are scattered the same way.
#pragma once

#include "cuda/launch.cuh"

constexpr Tile kNaiveTile{32, 32, 1024};

__global__ void __launch_bounds__(kNaiveTile.threads) naive_kernel(const Problem problem) {
  const Origin tile = tile_origin<kNaiveTile.rows, kNaiveTile.cols>(problem);
  const Problem p = problem.at(tile.product);
  const int64_t row = tile.row + threadIdx.x % kNaiveTile.rows;  // neighbours in the warp: rows
  const int64_t col = tile.col + threadIdx.x / kNaiveTile.rows;
  if (row >= p.M || col >= p.N) return;

  float sum = 0.0f;
  for (int64_t k = 0; k < p.K; ++k) sum += p.a(row, k) * p.b(k, col);
  p.c[row * p.c_stride + col] = sum;
}

inline cudaError_t launch_naive(const Problem& p, void*, cudaStream_t stream) {
  return launch_tiles(naive_kernel, kNaiveTile, p, stream);
}
