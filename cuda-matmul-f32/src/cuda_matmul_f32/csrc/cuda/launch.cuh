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

// One block per tile of C, row of tiles after row of tiles and product after product, in a
// one-dimensional grid: gridDim.x may be 2^31 - 1, while gridDim.y and z end at 65535, which is
// fewer than the tiles of a tall matrix.
inline cudaError_t launch_tiles(Kernel kernel, Tile tile, const Problem& p, cudaStream_t stream) {
  const int64_t tiles_m = (p.M + tile.rows - 1) / tile.rows;
  const int64_t tiles_n = (p.N + tile.cols - 1) / tile.cols;
  if (tiles_m > INT32_MAX / tiles_n) return cudaErrorInvalidConfiguration;
  if (p.batch > INT32_MAX / (tiles_m * tiles_n)) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(p.batch * tiles_m * tiles_n), tile.threads, 0, stream>>>(p);
  return cudaGetLastError();
}

// This block's tile: which product of the batch, its first row and its first column.
struct Origin {
  int64_t product;
  int64_t row;
  int64_t col;
};

template <int kRows, int kCols>
__device__ __forceinline__ Origin tile_origin(const Problem& p) {
  const int64_t tiles_m = (p.M + kRows - 1) / kRows;
  const int64_t tiles_n = (p.N + kCols - 1) / kCols;
  const int64_t tile = blockIdx.x % (tiles_m * tiles_n);
  return {blockIdx.x / (tiles_m * tiles_n), tile / tiles_n * kRows, tile % tiles_n * kCols};
}
