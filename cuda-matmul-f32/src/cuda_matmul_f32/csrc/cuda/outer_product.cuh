// The innermost step of rungs 5 to 10: a thread's tile of sums += a column of A times a row of B,
// all in registers, and where a thread's outputs lie in its warp's tile.
#pragma once

#include <cuda_runtime.h>

#include "problem.h"

// A multiprocessor's quarter starts one FFMA a cycle, and its register file has two banks, of even
// and of odd registers, that each deliver one operand a cycle. An FFMA has three operands, so it
// keeps pace only if one of them is still in the operand cache from an FFMA before, and the other
// two lie in different banks. Hence the order below, along a row and back along the next: each FFMA
// shares its a with its neighbour, or, where the row turns, its b; and b's four values of a vector
// load alternate between the banks, as do the sums of a row if the compiler may number them freely
// (Alpha below). Measured in LOG.md; what is known of the banks: Jia et al. 2018, "Dissecting the
// NVIDIA Volta GPU architecture via microbenchmarking", section 3.
//
// kSwap = 1 takes rows and columns in exchanged pairs: the same sums, and another numbering by the
// compiler. Which leaves fewer conflicts differs from kernel to kernel.
template <int kSwap = 0, int kRows, int kCols>
__device__ __forceinline__ void outer_product(float (&sum)[kRows][kCols], const float (&a)[kRows],
                                              const float (&b)[kCols]) {
#pragma unroll
  for (int turn = 0; turn < kRows; ++turn) {
#pragma unroll
    for (int step = 0; step < kCols; ++step) {
      const int i = turn ^ kSwap;
      const int j = (turn % 2 == kSwap ? step : kCols - 1 - step) ^ kSwap;
      sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
  }
}

// The 32 threads of a warp are 4 down and 8 across its tile. A thread's rows come in groups of four
// adjacent ones, as do its columns, so that it reads and writes vectors of four; its next group
// lies behind those of its neighbours, so that a warp reads adjacent vectors: 64 bytes of a panel
// of A and 128 of B at a time, each once for all threads that share it, without bank conflicts.
template <int kRows, int kCols>
struct WarpTile {
  static constexpr int kHeight = 4 * kRows;
  static constexpr int kWidth = 8 * kCols;

  __device__ static int row(int lane, int i) { return i / 4 * 16 + lane / 8 * 4 + i % 4; }
  __device__ static int col(int lane, int j) { return j / 4 * 32 + lane % 8 * 4 + j % 4; }

  // One step of K: a thread's values of A's panel row and of B's, which start at the warp's tile.
  __device__ static void load(const float* a_panel, const float* b_panel, int lane,
                              float (&a)[kRows], float (&b)[kCols]) {
#pragma unroll
    for (int i = 0; i < kRows; i += 4)
      load_four(a_panel + row(lane, i), a[i], a[i + 1], a[i + 2], a[i + 3]);
#pragma unroll
    for (int j = 0; j < kCols; j += 4)
      load_four(b_panel + col(lane, j), b[j], b[j + 1], b[j + 2], b[j + 3]);
  }

  // Stores the sums times alpha to C, whose element (0, 0) of this warp's tile is `c`; `rows` and
  // `cols` of C are left from there. Alpha is BLAS's factor and always 1: because the compiler
  // cannot know that, the products are new values, and it need not keep the sums themselves in
  // groups of four registers for the vector stores, against the banks that outer_product() wants.
  __device__ static void store(float (&sum)[kRows][kCols], float alpha, float* c, int64_t stride,
                               int64_t rows, int64_t cols, int lane) {
    const bool vectors =
        cols >= kWidth && stride % 4 == 0 && reinterpret_cast<uintptr_t>(c) % 16 == 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) sum[i][j] *= alpha;
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (row(lane, i) >= rows) continue;
      float* to = c + row(lane, i) * stride;
      if (vectors) {
#pragma unroll
        for (int j = 0; j < kCols; j += 4) {
          *reinterpret_cast<float4*>(to + col(lane, j)) =
              make_float4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kCols; ++j) {
          if (col(lane, j) < cols) to[col(lane, j)] = sum[i][j];
        }
      }
    }
  }

 private:
  __device__ static void load_four(const float* from, float& x, float& y, float& z, float& w) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    x = four.x, y = four.y, z = four.z, w = four.w;
  }
};
