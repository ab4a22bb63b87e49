// CUDA 3: the block copies a 32 x 32 tile of A and of B into shared memory, then all its threads
// read their values from there.
//
// Removes: the repeated fetches from L2 and memory. The 1024 threads load each value of both tiles
//   once and use it 32 times: 2/32 of a global load per multiply-add and thread instead of 2.
// Leaves: shared memory now sets the pace. For 32 FMAs a thread reads 32 values of B one by one and
//   32 of A in 8 vectors of four, 40 loads, and an SM serves one warp-wide load a cycle where it
//   could start four FMAs: 20% of its arithmetic at best. What helps is to compute several outputs
//   per thread, so that a value once in a register is used more than once. Also all threads wait at
//   two barriers per 32 steps of k, and loading overlaps with computing only across blocks.
#pragma once

#include "cuda/launch.cuh"

constexpr int kSharedSide = 32;
constexpr Tile kSharedTile{kSharedSide, kSharedSide, kSharedSide * kSharedSide};

// Copies the tile of `from` at (row, col) into shared memory, one value a thread, with zeros past
// the matrix's edge. Neighbouring threads read along whichever direction is contiguous in memory,
// so that a transposed view loads as fast; its stores then walk down a column of the tile.
template <int kStride>
__device__ __forceinline__ void load_tile(float (&to)[kSharedSide][kStride], const Matrix& from,
                                          int64_t row, int64_t col, int64_t rows, int64_t cols) {
  const bool along_columns = from.row_stride < from.col_stride;
  const int fast = threadIdx.x % kSharedSide;
  const int slow = threadIdx.x / kSharedSide;
  const int r = along_columns ? fast : slow;
  const int c = along_columns ? slow : fast;
  to[r][c] = row + r < rows && col + c < cols ? from(row + r, col + c) : 0.0f;
}

__global__ void __launch_bounds__(kSharedTile.threads) shared_tile_kernel(const Problem problem) {
  // Padding columns keep stores down a column off one single bank (of 32, each a float wide). B's
  // one column spreads them over all; A's four over 8, and leave each row on 16 bytes, so that the
  // compiler can read four values of a row at once.
  __shared__ __align__(16) float a[kSharedSide][kSharedSide + 4];
  __shared__ float b[kSharedSide][kSharedSide + 1];
  const Origin tile = tile_origin<kSharedTile.rows, kSharedTile.cols>(problem);
  const Problem p = problem.at(tile.product);
  const int row = threadIdx.x / kSharedSide;
  const int col = threadIdx.x % kSharedSide;

  float sum = 0.0f;
  for (int64_t k0 = 0; k0 < p.K; k0 += kSharedSide) {
    load_tile(a, p.a, tile.row, k0, p.M, p.K);
    load_tile(b, p.b, k0, tile.col, p.K, p.N);
    __syncthreads();  // the tiles are complete
                      // Past the end of K both tiles hold zeros: they add 0 * 0, never 0 * Inf.
#pragma unroll
    for (int k = 0; k < kSharedSide; ++k) sum += a[row][k] * b[k][col];
    __syncthreads();  // all have read before the next tiles overwrite these
  }
  // Only now: a thread outside of C must still load for the others and reach the barriers.
  if (tile.row + row < p.M && tile.col + col < p.N) {
    p.c[(tile.row + row) * p.c_stride + tile.col + col] = sum;
  }
}

inline cudaError_t launch_shared_tile(const Problem& p, void*, cudaStream_t stream) {
  return launch_tiles(shared_tile_kernel, kSharedTile, p, stream);
}
