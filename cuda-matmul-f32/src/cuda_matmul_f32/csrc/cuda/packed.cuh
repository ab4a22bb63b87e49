// A copy of B that rung 9's copy engine can read, for a B that it cannot: one whose columns are not
// adjacent, or whose rows do not start on multiples of 16 bytes.
//
// Without it the producers would copy B in pieces of 4 bytes, again for each row of tiles; so once
// C has enough rows, rearranging B once, at the speed of memory, takes less (LOG.md).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/launch.cuh"
#include "cuda/panel_copy.cuh"
#include "problem.h"

// The copy is [products, K, width]: rows of N values, and zeros up to a multiple of 16 bytes.
HOST_DEVICE int64_t packed_width(const Problem& p) {
  return ceil_div(p.N, 4) * 4;
}
inline int64_t packed_products(const Problem& p) {
  return p.b.batch_stride == 0 ? 1 : p.batch;
}
inline size_t packed_bytes(const Problem& p) {
  return static_cast<size_t>(packed_products(p)) * p.K * packed_width(p) * sizeof(float);
}

// The problem with the copy in place of B.
inline Problem with_packed_b(Problem p, const float* copy) {
  const int64_t width = packed_width(p);
  p.b = {copy, width, 1, p.b.batch_stride == 0 ? 0 : p.K * width};
  return p;
}

constexpr int kPackLines = 64, kPackDepth = 32, kPackThreads = 256;

// A block moves a panel of B through shared memory, which turns it over where K is adjacent.
template <Copy kCopy>
__global__ void __launch_bounds__(kPackThreads) pack_kernel(const Problem p, float* copy) {
  constexpr int kStride = kPackLines + 4;
  __shared__ __align__(16) float panel[kPackDepth * kStride];
  wait_for_previous_kernel();
  const int64_t width = packed_width(p);
  const int64_t across = ceil_div(width, kPackLines), down = ceil_div(p.K, kPackDepth);
  const int64_t product = blockIdx.x / (across * down);
  const int64_t line = blockIdx.x % across * kPackLines;
  const int64_t k = blockIdx.x / across % down * kPackDepth;

  PanelCopy<kCopy, kPackLines, kPackDepth, kPackThreads, kStride, 4> load(
      lines_of_b(p.at(product)), line, p.N, k, threadIdx.x);
  load.start(panel, p.K - k);
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  let_next_kernel_launch();
#pragma unroll
  for (int at = threadIdx.x * 4; at < kPackLines * kPackDepth; at += kPackThreads * 4) {
    const int row = at / kPackLines, col = at % kPackLines;
    if (k + row >= p.K || line + col >= width) continue;
    *reinterpret_cast<float4*>(copy + (product * p.K + k + row) * width + line + col) =
        *reinterpret_cast<const float4*>(panel + row * kStride + col);
  }
}

// Whether B may be copied: not beyond 4 GiB, which a program may not have left, nor where no grid
// is that large.
inline bool pack_blocks(const Problem& p, int64_t* blocks) {
  if (packed_bytes(p) > size_t{4} << 30) return false;
  const int64_t across = ceil_div(packed_width(p), kPackLines), down = ceil_div(p.K, kPackDepth);
  if (across > INT32_MAX / down || packed_products(p) > INT32_MAX / (across * down)) return false;
  *blocks = packed_products(p) * across * down;
  return true;
}

inline cudaError_t pack_b(const Problem& p, float* copy, cudaStream_t stream) {
  int64_t blocks = 0;
  if (!pack_blocks(p, &blocks)) return cudaErrorInvalidConfiguration;
  const auto kernel =
      p.b.row_stride == 1 ? pack_kernel<Copy::kAlongK> : pack_kernel<Copy::kAlongLines>;
  return launch_behind(kernel, {blocks, kPackThreads}, stream, p, copy);
}
