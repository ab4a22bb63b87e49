// CUDA 5: each thread computes an 8 x 8 tile of outputs in registers; a block, 128 x 128.
//
// Removes: more loads than multiply-adds from shared memory. Per step of k a thread reads 8 values
//   of A and 8 of B, as 4 vectors of four, and does 64 FMAs with them: one load for 16 FMAs instead
//   of 3 for 8. A block of 128 x 128 also fetches half as much from L2 as the 4 blocks of 64 x 64
//   did.
// Leaves: global loads of 4 bytes a thread, each with its own address and edge test; loading and
//   computing take turns, since the loads of the next tile start after the barrier; 64 sums and
//   their operands take so many registers that two blocks fit on an SM, so 16 warps hide latency;
//   and a C smaller than a tile per SM leaves the other SMs idle.
#pragma once

#include "cuda/panel_load.cuh"

constexpr Tile kRegisterTile{kLines, kLines, kPanelThreads};  // 16 x 16 threads
constexpr int kOutputs = kLines / 16;                         // of each thread, in each direction

// The i-th of a thread's eight lines. They are two groups of four, half a panel apart, so that
// threads beside each other read adjacent vectors; with eight in a row, threads four apart would
// hit the same banks.
__device__ __forceinline__ int line_of(int thread, int i) {
  return thread * 4 + i / 4 * (kLines / 2) + i % 4;
}

// Rungs 5 and 6 differ in their loaders only.
template <class LoaderA, class LoaderB>
__device__ __forceinline__ void register_tile(const Problem& problem) {
  __shared__ __align__(16) Panel a;
  __shared__ __align__(16) Panel b;
  const Origin tile = tile_origin<kRegisterTile.rows, kRegisterTile.cols>(problem);
  const Problem p = problem.at(tile.product);
  const int thread_row = threadIdx.x / 16;
  const int thread_col = threadIdx.x % 16;

  float sum[kOutputs][kOutputs] = {};
  LoaderA load_a(&p.a(tile.row, 0), p.a.row_stride, p.a.col_stride, p.M - tile.row);
  LoaderB load_b(&p.b(0, tile.col), p.b.col_stride, p.b.row_stride, p.N - tile.col);
  for (int64_t k0 = 0; k0 < p.K; k0 += kPanelStep) {
    const int depth = static_cast<int>(p.K - k0 < kPanelStep ? p.K - k0 : kPanelStep);
    load_a.load(a, depth);
    load_b.load(b, depth);
    __syncthreads();  // the panels are complete
#pragma unroll
    for (int k = 0; k < kPanelStep; ++k) {
      float a_column[kOutputs], b_row[kOutputs];
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        a_column[i] = a[k][line_of(thread_row, i)];
        b_row[i] = b[k][line_of(thread_col, i)];
      }
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
#pragma unroll
        for (int j = 0; j < kOutputs; ++j) sum[i][j] += a_column[i] * b_row[j];
      }
    }
    __syncthreads();  // all have read before the next panels overwrite these
  }

#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int64_t row = tile.row + line_of(thread_row, i);
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      const int64_t col = tile.col + line_of(thread_col, j);
      if (row < p.M && col < p.N) p.c[row * p.c_stride + col] = sum[i][j];
    }
  }
}

__global__ void __launch_bounds__(kRegisterTile.threads, 2) register_tile_kernel(const Problem p) {
  register_tile<PanelLoader, PanelLoader>(p);
}

inline cudaError_t launch_register_tile(const Problem& p, void*, cudaStream_t stream) {
  return launch_tiles(register_tile_kernel, kRegisterTile, p, stream);
}
