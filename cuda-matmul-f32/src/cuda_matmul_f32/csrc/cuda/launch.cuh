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

// The number of tiles that cover C, product after product; false if no grid is that large.
// gridDim.x may be 2^31 - 1, while gridDim.y and z end at 65535, which is fewer than the tiles of a
// tall matrix: all grids here are one-dimensional.
inline bool block_count(const Problem& p, int rows, int cols, int64_t* blocks) {
  const int64_t tiles_m = (p.M + rows - 1) / rows;
  const int64_t tiles_n = (p.N + cols - 1) / cols;
  if (tiles_m > INT32_MAX / tiles_n || p.batch > INT32_MAX / (tiles_m * tiles_n)) return false;
  *blocks = p.batch * tiles_m * tiles_n;
  return true;
}

// One block per tile of C, row of tiles after row of tiles and product after product.
template <class... More>
cudaError_t launch_tiles(void (*kernel)(Problem, More...), Tile tile, const Problem& p,
                         cudaStream_t stream, More... more) {
  int64_t blocks = 0;
  if (!block_count(p, tile.rows, tile.cols, &blocks)) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), tile.threads, 0, stream>>>(p, more...);
  return cudaGetLastError();
}

// A tile's place: which product of the batch, its first row and its first column.
struct Origin {
  int64_t product;
  int64_t row;
  int64_t col;
};

template <int kRows, int kCols>
__device__ __forceinline__ Origin tile_origin(const Problem& p, int64_t index) {
  const int64_t tiles_m = (p.M + kRows - 1) / kRows;
  const int64_t tiles_n = (p.N + kCols - 1) / kCols;
  const int64_t tile = index % (tiles_m * tiles_n);
  return {index / (tiles_m * tiles_n), tile / tiles_n * kRows, tile % tiles_n * kCols};
}

// This block's tile.
template <int kRows, int kCols>
__device__ __forceinline__ Origin tile_origin(const Problem& p) {
  return tile_origin<kRows, kCols>(p, blockIdx.x);
}
