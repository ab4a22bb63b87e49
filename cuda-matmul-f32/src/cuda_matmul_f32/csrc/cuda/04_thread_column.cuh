// CUDA 4: each thread computes a column of 8 outputs; a block of 512 threads, 64 x 64.
//
// Removes: most of the loads from shared memory. In each step of k a thread reads one value of B,
//   keeps it in a register, and uses it for 8 outputs: 8 of A, in 2 vectors of four, and 1 of B for
//   8 FMAs, where rung 3 read 10 for 8.
// Leaves: 3 loads for 8 FMAs. The values of A are used once per thread still; only a tile in both
//   directions uses both more than once.
#pragma once

#include "cuda/launch.cuh"

constexpr int kColumn = 8;  // outputs of each thread
constexpr int kColumnStep = 8;
constexpr Tile kColumnTile{64, 64, 64 * 64 / kColumn};

// As in rung 3, but a panel is 64 lines (rows of A, columns of B) by 8 steps of k: 512 values for
// 512 threads. Four floats of padding keep rows on 16 bytes and stores off one single bank.
using ColumnPanel = float[kColumnStep][64 + 4];  // [k][line]

__device__ __forceinline__ void load_column_panel(ColumnPanel& to, const float* first,
                                                  int64_t line_stride, int64_t k_stride,
                                                  int64_t lines, int64_t depth) {
  const bool along_k = k_stride < line_stride;
  const int line = along_k ? threadIdx.x / kColumnStep : threadIdx.x % 64;
  const int k = along_k ? threadIdx.x % kColumnStep : threadIdx.x / 64;
  to[k][line] = line < lines && k < depth ? first[line * line_stride + k * k_stride] : 0.0f;
}

__global__ void __launch_bounds__(kColumnTile.threads) thread_column_kernel(const Problem problem) {
  __shared__ __align__(16) ColumnPanel a;
  __shared__ __align__(16) ColumnPanel b;
  const Origin tile = tile_origin<kColumnTile.rows, kColumnTile.cols>(problem);
  const Problem p = problem.at(tile.product);
  const int row = threadIdx.x / 64 * kColumn;  // the same for a whole warp: reads of A broadcast
  const int col = threadIdx.x % 64;

  float sum[kColumn] = {};
  for (int64_t k0 = 0; k0 < p.K; k0 += kColumnStep) {
    load_column_panel(a, &p.a(tile.row, k0), p.a.row_stride, p.a.col_stride, p.M - tile.row,
                      p.K - k0);
    load_column_panel(b, &p.b(k0, tile.col), p.b.col_stride, p.b.row_stride, p.N - tile.col,
                      p.K - k0);
    __syncthreads();  // the panels are complete
#pragma unroll
    for (int k = 0; k < kColumnStep; ++k) {
      const float b_value = b[k][col];
#pragma unroll
      for (int i = 0; i < kColumn; ++i) sum[i] += a[k][row + i] * b_value;
    }
    __syncthreads();  // all have read before the next panels overwrite these
  }
#pragma unroll
  for (int i = 0; i < kColumn; ++i) {
    if (tile.row + row + i < p.M && tile.col + col < p.N) {
      p.c[(tile.row + row + i) * p.c_stride + tile.col + col] = sum[i];
    }
  }
}

inline cudaError_t launch_thread_column(const Problem& p, void*, cudaStream_t stream) {
  return launch_tiles(thread_column_kernel, kColumnTile, p, stream);
}
