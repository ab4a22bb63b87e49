// Splitting K for rungs 10 and 11: each slice of K gives a matrix of partial sums, and a second
// kernel adds them up, always in the same order, so the result has the same bits on each run.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/launch.cuh"
#include "problem.h"

inline size_t slices_bytes(const Problem& p, int64_t slices) {
  if (slices == 1) return 0;
  return static_cast<size_t>(slices) * p.batch * p.M * p.N * sizeof(float);
}

// C = the sum of dense slices [slices, batch, M, N]. A block adds 32 x kFloats outputs: each of its
// 8 warps takes every eighth slice, then the first adds the warps' sums.
template <int kFloats>
__global__ void __launch_bounds__(256)
    add_slices_kernel(const Problem p, const float* partials, int64_t slices) {
  __shared__ float sums[8][32][kFloats];
  wait_for_previous_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t all = p.batch * p.M * p.N;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * 32 + lane) * kFloats;
  float sum[kFloats] = {};
  if (at < all) {
#pragma unroll 4
    for (int64_t slice = warp; slice < slices; slice += 8) {
      const float* from = partials + slice * all + at;
      if constexpr (kFloats == 4) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        sum[0] += four.x, sum[1] += four.y, sum[2] += four.z, sum[3] += four.w;
      } else {
        sum[0] += *from;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kFloats; ++j) sums[warp][lane][j] = sum[j];
  __syncthreads();
  let_next_kernel_launch();
  if (warp > 0 || at >= all) return;
  const int64_t line = at / p.N;  // of all products' rows
  float* c = p.c + line / p.M * p.c_batch_stride + line % p.M * p.c_stride + at % p.N;
#pragma unroll
  for (int j = 0; j < kFloats; ++j) {
    for (int other = 1; other < 8; ++other) sum[j] += sums[other][lane][j];
    c[j] = sum[j];
  }
}

inline cudaError_t add_slices(const Problem& p, const float* partials, int64_t slices,
                              cudaStream_t stream) {
  const bool vectors = p.N % 4 == 0;  // four outputs of one row
  const int64_t per_block = vectors ? 128 : 32;
  const int64_t blocks = ceil_div(p.batch * p.M * p.N, per_block);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const auto kernel = vectors ? add_slices_kernel<4> : add_slices_kernel<1>;
  return launch_behind(kernel, {blocks, 256}, stream, p, partials, slices);
}

// C's place for the sums of one slice, or C itself if there is only one.
HOST_DEVICE Problem with_slice_for_c(Problem p, float* partials, int64_t slices, int64_t slice) {
  if (slices > 1) {
    p.c = partials + slice * p.batch * p.M * p.N;
    p.c_stride = p.N;
    p.c_batch_stride = p.M * p.N;
  }
  return p;
}
