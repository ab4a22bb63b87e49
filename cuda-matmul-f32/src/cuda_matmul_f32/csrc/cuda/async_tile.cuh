// The kernel of rungs 8 and 10: a block computes one tile of C, or one slice of K of it, from
// panels that are copied several stages ahead. The rungs choose tile and slices.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.cuh"
#include "cuda/outer_product.cuh"
#include "cuda/panel_copy.cuh"
#include "cuda/slices.cuh"
#include "problem.h"

// Warps down and across the block's tile. Each computes 32 x 64 outputs, 8 x 8 a thread.
template <int kWarpsM, int kWarpsN>
struct AsyncTile {
  using Warp = WarpTile<8, 8>;
  static constexpr int kRows = kWarpsM * Warp::kHeight;
  static constexpr int kCols = kWarpsN * Warp::kWidth;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kDepth = 16;  // steps of K in a stage
  static constexpr int kStages = 4;  // one is computed with while three are under way
  static constexpr int kStrideA = kRows + 4, kStrideB = kCols + 4;
  static constexpr int kStageFloats = kDepth * (kStrideA + kStrideB);
  static constexpr int kSharedBytes = kStages * kStageFloats * 4;
  // 128 registers a thread: that many blocks fit beside each other on a multiprocessor.
  static constexpr int kBlocks = 512 / kThreads;
};

template <class T, Copy kCopyA, Copy kCopyB>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    async_tile_kernel(const Problem problem, int64_t slices, float* partials, float alpha) {
  extern __shared__ __align__(16) float stages[];
  // Slice after slice of K, so that blocks beside each other share panels.
  const int64_t tiles = gridDim.x / slices, slice = blockIdx.x / tiles;
  const Origin tile = tile_origin<T::kRows, T::kCols>(problem, blockIdx.x % tiles);
  const Problem p = with_slice_for_c(problem, partials, slices, slice).at(tile.product);
  // In whole stages: only the last slice has a ragged end.
  const int64_t stages_of_k = (p.K + T::kDepth - 1) / T::kDepth;
  const int64_t k_first = stages_of_k * slice / slices * T::kDepth;
  const int64_t k_last = min(p.K, stages_of_k * (slice + 1) / slices * T::kDepth);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_row = warp / (T::kCols / T::Warp::kWidth) * T::Warp::kHeight;
  const int warp_col = warp % (T::kCols / T::Warp::kWidth) * T::Warp::kWidth;

  PanelCopy<kCopyA, T::kRows, T::kDepth, T::kThreads, T::kStrideA> copy_a(
      lines_of_a(p), tile.row, p.M, k_first, thread);
  PanelCopy<kCopyB, T::kCols, T::kDepth, T::kThreads, T::kStrideB> copy_b(
      lines_of_b(p), tile.col, p.N, k_first, thread);
  const auto start_copies = [&](int64_t k, int stage) {
    float* a = stages + stage * T::kStageFloats;
    if (k < k_last) {
      copy_a.start(a, k_last - k);
      copy_b.start(a + T::kDepth * T::kStrideA, k_last - k);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");  // also an empty one: wait_group counts
  };

  for (int i = 0; i < T::kStages - 1; ++i) start_copies(k_first + i * T::kDepth, i);
  float sum[8][8] = {};
  int stage = 0;
  for (int64_t k0 = k_first; k0 < k_last; k0 += T::kDepth) {
    // All groups but the newest kStages - 2 are complete: this stage's copies by this thread ...
    asm volatile("cp.async.wait_group %0;" ::"n"(T::kStages - 2) : "memory");
    __syncthreads();  // ... and by all. Also, all have read the stage that is filled next.
    start_copies(k0 + (T::kStages - 1) * T::kDepth, (stage + T::kStages - 1) % T::kStages);
    const float* a_panel = stages + stage * T::kStageFloats + warp_row;
    const float* b_panel = stages + stage * T::kStageFloats + T::kDepth * T::kStrideA + warp_col;
#pragma unroll 8  // all 16 at once, and the compiler numbers the sums against outer_product()
    for (int k = 0; k < T::kDepth; ++k) {
      float a[8], b[8];
      T::Warp::load(a_panel + k * T::kStrideA, b_panel + k * T::kStrideB, lane, a, b);
      outer_product(sum, a, b);
    }
    stage = (stage + 1) % T::kStages;
  }
  const int64_t row = tile.row + warp_row, col = tile.col + warp_col;
  T::Warp::store(sum, alpha, p.c + row * p.c_stride + col, p.c_stride, p.M - row, p.N - col, lane);
}

template <class T, Copy kCopyA, Copy kCopyB>
cudaError_t launch_async_tile(const Problem& p, int64_t slices, float* partials,
                              cudaStream_t stream) {
  const auto kernel = async_tile_kernel<T, kCopyA, kCopyB>;
  // On every call, since the attribute belongs to the current device; it costs well under 1 us.
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  if (error != cudaSuccess) return error;
  int64_t blocks = 0;
  if (!block_count(p, T::kRows, T::kCols, &blocks) || blocks > INT32_MAX / slices) {
    return cudaErrorInvalidConfiguration;
  }
  kernel<<<static_cast<unsigned>(blocks * slices), T::kThreads, T::kSharedBytes, stream>>>(
      p, slices, partials, 1.0f);
  return cudaGetLastError();
}

// With K in more than one slice the sums of each go to `partials` (slices.cuh) instead of C.
// The best copies that the operands' strides allow. Of nine pairs those that contiguous matrices
// and their transposes need are compiled; other views take the copies that can do anything.
template <class T>
cudaError_t launch_async_tile(const Problem& p, int64_t slices, float* partials,
                              cudaStream_t stream) {
  const Copy a = copy_for(lines_of_a(p)), b = copy_for(lines_of_b(p));
  constexpr Copy kVectors = Copy::kVectors, kAlongK = Copy::kAlongK, kAny = Copy::kAlongLines;
  if (a == kAlongK && b == kVectors) return launch_async_tile<T, kAlongK, kVectors>(p, slices, partials, stream);
  if (a == kAlongK && b == kAlongK) return launch_async_tile<T, kAlongK, kAlongK>(p, slices, partials, stream);
  if (a == kAlongK) return launch_async_tile<T, kAlongK, kAny>(p, slices, partials, stream);
  if (a == kVectors && b == kVectors) return launch_async_tile<T, kVectors, kVectors>(p, slices, partials, stream);
  if (b == kAlongK) return launch_async_tile<T, kAny, kAlongK>(p, slices, partials, stream);
  return launch_async_tile<T, kAny, kAny>(p, slices, partials, stream);
}
