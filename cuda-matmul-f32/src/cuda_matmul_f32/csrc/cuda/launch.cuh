// The launcher that all rungs share, so that a rung's file shows only its kernel.
#pragma once

#include <cuda_runtime.h>

#include "problem.h"

// The tile of C, rows x cols outputs, that one block of threads computes.
struct Tile {
  int rows;
  int cols;
  int threads;
};

using Kernel = void (*)(Problem);

// One block per tile of C, row of tiles after row of tiles, in a one-dimensional grid: gridDim.x
// may be 2^31 - 1, while gridDim.y ends at 65535, which is fewer than the tiles of a tall matrix.
inline cudaError_t launch_tiles(Kernel kernel, Tile tile, const Problem& p, cudaStream_t stream) {
  const int64_t tiles_m = (p.M + tile.rows - 1) / tile.rows;
  const int64_t tiles_n = (p.N + tile.cols - 1) / tile.cols;
  if (tiles_m > INT32_MAX / tiles_n) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(tiles_m * tiles_n), tile.threads, 0, stream>>>(p);
  return cudaGetLastError();
}

// The first row and column of this block's tile.
struct Origin {
  int64_t row;
  int64_t col;
};

template <int kRows, int kCols>
__device__ __forceinline__ Origin tile_origin(const Problem& p) {
  const int64_t tiles_n = (p.N + kCols - 1) / kCols;
  return {blockIdx.x / tiles_n * kRows, blockIdx.x % tiles_n * kCols};
}
