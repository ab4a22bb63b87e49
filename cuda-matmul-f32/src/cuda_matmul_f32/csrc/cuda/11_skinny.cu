// CUDA 11: a few rows (or columns) times a large matrix. The large one is read once, straight into
// registers, at the speed of memory.
//
// Removes: the work on rows that are not there: a tile of 64 rows for M = 1 does 64 times the
//   arithmetic. With M rows there are 2 M operations for each 4 bytes of B; an H100 has time for
//   about 70, so up to some 16 rows memory is the limit, and nothing but the large matrix's bytes
//   matters. Its values are used by one thread only, so they do not pass through shared memory;
//   those of the thin matrix do, since all threads need them.
// Leaves: from about 16 rows on, arithmetic: each value of the large matrix is used once per row,
//   but each of the thin one only four times per load.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/panel_copy.cuh"
#include "cuda/slices.cuh"

namespace {

constexpr int kWarps = 8;
constexpr int kChunk = 256;  // steps of K of the thin matrix that are in shared memory at a time

// The problem seen from the larger side. C's element (thin line t, long line l) is at
// t * c_thin_stride + l * c_long_stride.
struct Skinny {
  Lines thin, large;
  int64_t thin_lines, large_lines;
  int64_t c_thin_stride, c_long_stride;
};

HOST_DEVICE Skinny skinny_of(const Problem& p) {
  if (p.M <= p.N) return {lines_of_a(p), lines_of_b(p), p.M, p.N, p.c_stride, 1};
  return {lines_of_b(p), lines_of_a(p), p.N, p.M, 1, p.c_stride};
}

// How the grid numbers its blocks: product, group of thin lines, group of long lines, slice of K.
struct Grid {
  int64_t thin_groups, long_groups, slices;
};

struct Part {
  Problem p;
  Skinny s;
  int64_t thin, line;  // the block's first
  int64_t k_first, k_last;
};

__device__ __forceinline__ Part part_of(const Problem& problem, const Grid& grid, float* partials,
                                        int thin_per_block, int lines_per_block) {
  int64_t index = blockIdx.x;
  const int64_t long_group = index % grid.long_groups;
  index /= grid.long_groups;
  const int64_t slice = index % grid.slices;
  index /= grid.slices;
  const int64_t thin_group = index % grid.thin_groups;
  Part part;
  part.p = with_slice_for_c(problem, partials, grid.slices, slice).at(index / grid.thin_groups);
  part.s = skinny_of(part.p);
  part.thin = thin_group * thin_per_block;
  part.line = long_group * lines_per_block;
  const int64_t chunks = (part.p.K + kChunk - 1) / kChunk;
  part.k_first = chunks * slice / grid.slices * kChunk;
  part.k_last = min(part.p.K, chunks * (slice + 1) / grid.slices * kChunk);
  return part;
}

// Puts steps [k, k + kChunk) of kThin lines into shared memory, zero past the edges. Neighbouring
// threads read along whichever direction is adjacent.
template <int kThin>
__device__ __forceinline__ void load_thin(float (&to)[kThin][kChunk], const Part& part, int64_t k) {
  const Lines& m = part.s.thin;
  const bool along_k = m.k_stride <= m.line_stride;
  for (int i = threadIdx.x; i < kThin * kChunk; i += kWarps * 32) {
    const int t = along_k ? i / kChunk : i % kThin;
    const int step = along_k ? i % kChunk : i / kThin;
    const bool valid = part.thin + t < part.s.thin_lines && k + step < part.k_last;
    to[t][step] =
        valid ? m.first[(part.thin + t) * m.line_stride + (k + step) * m.k_stride] : 0.0f;
  }
}

template <int kFloats>
__device__ __forceinline__ void load_floats(const float* from, float (&to)[kFloats]) {
  if constexpr (kFloats == 4) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(from));
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    to[0] = __ldg(from);
  }
}

// The large matrix's lines are adjacent (a row-major B): a thread owns kFloats of them and goes
// along K, each warp through its own eighth of a chunk. At the end the warps' sums are added.
template <int kThin, int kFloats>
__global__ void __launch_bounds__(kWarps * 32)
    along_lines_kernel(const Problem problem, const Grid grid, float* partials) {
  __shared__ __align__(16) float thin[kThin][kChunk];
  __shared__ float sums[kWarps][32 * kFloats];
  const Part part = part_of(problem, grid, partials, kThin, 32 * kFloats);
  const Lines& m = part.s.large;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t line = part.line + lane * kFloats;
  const bool inside = line < part.s.large_lines;

  float sum[kThin][kFloats] = {};
  for (int64_t k0 = part.k_first; k0 < part.k_last; k0 += kChunk) {
    __syncthreads();  // all have used the chunk before
    load_thin(thin, part, k0);
    __syncthreads();
    constexpr int kShare = kChunk / kWarps;
    const int64_t k = k0 + warp * kShare;
    const float* from = m.first + line * m.line_stride + k * m.k_stride;
    if (!inside) continue;
#pragma unroll 2
    for (int step = 0; step < kShare; step += 4) {
      float values[4][kFloats] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Not past the end of K: what lies there may be NaN, and the thin matrix's zero times that.
        if (k + step + i < part.k_last) load_floats(from + (step + i) * m.k_stride, values[i]);
      }
#pragma unroll
      for (int t = 0; t < kThin; ++t) {
        const float4 a = *reinterpret_cast<const float4*>(&thin[t][warp * kShare + step]);
#pragma unroll
        for (int j = 0; j < kFloats; ++j) {
          sum[t][j] = fmaf(a.x, values[0][j], sum[t][j]);
          sum[t][j] = fmaf(a.y, values[1][j], sum[t][j]);
          sum[t][j] = fmaf(a.z, values[2][j], sum[t][j]);
          sum[t][j] = fmaf(a.w, values[3][j], sum[t][j]);
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kThin; ++t) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kFloats; ++j) sums[warp][j * 32 + lane] = sum[t][j];
    __syncthreads();
    const int at = threadIdx.x;  // lane at % 32, its output at / 32
    const int64_t out = part.line + at % 32 * kFloats + at / 32;
    if (at >= 32 * kFloats || out >= part.s.large_lines || part.thin + t >= part.s.thin_lines) {
      continue;
    }
    float total = sums[0][at];
    for (int other = 1; other < kWarps; ++other) total += sums[other][at];
    part.p.c[(part.thin + t) * part.s.c_thin_stride + out * part.s.c_long_stride] = total;
  }
}

// The large matrix's steps of K are adjacent (a transposed B, as in a linear layer): a warp owns 4
// lines and its threads lie along K. At the end the threads' sums are added.
template <int kThin, int kFloats>
__global__ void __launch_bounds__(kWarps * 32)
    along_k_kernel(const Problem problem, const Grid grid, float* partials) {
  constexpr int kLines = 4;
  __shared__ __align__(16) float thin[kThin][kChunk];
  const Part part = part_of(problem, grid, partials, kThin, kWarps * kLines);
  const Lines& m = part.s.large;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t line = part.line + warp * kLines;

  float sum[kThin][kLines] = {};
  for (int64_t k0 = part.k_first; k0 < part.k_last; k0 += kChunk) {
    __syncthreads();  // all have used the chunk before
    load_thin(thin, part, k0);
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kChunk; step += 32 * kFloats) {
      const int at = step + lane * kFloats;
      float values[kLines][kFloats] = {};
#pragma unroll
      for (int j = 0; j < kLines; ++j) {
        if (line + j < part.s.large_lines && k0 + at < part.k_last) {
          load_floats(m.first + (line + j) * m.line_stride + (k0 + at) * m.k_stride, values[j]);
        }
      }
#pragma unroll
      for (int t = 0; t < kThin; ++t) {
#pragma unroll
        for (int i = 0; i < kFloats; ++i) {
          const float a = thin[t][at + i];
#pragma unroll
          for (int j = 0; j < kLines; ++j) sum[t][j] = fmaf(a, values[j][i], sum[t][j]);
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kThin; ++t) {
#pragma unroll
    for (int j = 0; j < kLines; ++j) {
#pragma unroll
      for (int other = 16; other > 0; other /= 2) {
        sum[t][j] += __shfl_xor_sync(0xffffffffu, sum[t][j], other);
      }
      if (lane == 0 && line + j < part.s.large_lines && part.thin + t < part.s.thin_lines) {
        part.p.c[(part.thin + t) * part.s.c_thin_stride + (line + j) * part.s.c_long_stride] =
            sum[t][j];
      }
    }
  }
}

// Whether vectors of four values can be read along the direction in which they are adjacent.
bool vectors_along_k(const Lines& m, int64_t K) {
  return K % 4 == 0 && m.line_stride % 4 == 0 && m.batch_stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(m.first) % 16 == 0;
}

struct Plan {
  bool along_k, vectors;
  int thin;  // lines of the thin matrix that a block takes: 1, 4 or 16
  Grid grid;
};

Plan plan_for(const Problem& p) {
  const Skinny s = skinny_of(p);
  Plan plan{};
  plan.along_k = s.large.k_stride == 1 && s.large.line_stride != 1;
  plan.vectors = plan.along_k ? vectors_along_k(s.large, p.K)
                              : copy_for(s.large) == Copy::kVectors && s.large_lines % 4 == 0;
  plan.thin = s.thin_lines == 1 ? 1 : s.thin_lines <= 4 ? 4 : 16;
  const int64_t lines = plan.along_k ? kWarps * 4 : plan.vectors ? 128 : 32;
  plan.grid.thin_groups = (s.thin_lines + plan.thin - 1) / plan.thin;
  plan.grid.long_groups = (s.large_lines + lines - 1) / lines;
  // Enough blocks for every multiprocessor to have several, so that loads are always under way.
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  const int64_t blocks = p.batch * plan.grid.thin_groups * plan.grid.long_groups;
  const int64_t chunks = std::max<int64_t>(1, (p.K + kChunk - 1) / kChunk);
  plan.grid.slices = std::clamp<int64_t>(4 * processors / blocks, 1, chunks);
  return plan;
}

size_t skinny_workspace(const Problem& p) {
  return slices_bytes(p, plan_for(p).grid.slices);
}

using SkinnyKernel = void (*)(Problem, Grid, float*);

template <int kThin>
SkinnyKernel kernel_for(const Plan& plan) {
  if (plan.along_k) return plan.vectors ? along_k_kernel<kThin, 4> : along_k_kernel<kThin, 1>;
  return plan.vectors ? along_lines_kernel<kThin, 4> : along_lines_kernel<kThin, 1>;
}

cudaError_t launch_skinny(const Problem& p, void* workspace, cudaStream_t stream) {
  const Plan plan = plan_for(p);
  const Grid& grid = plan.grid;
  if (grid.thin_groups > INT32_MAX / grid.long_groups ||
      p.batch > INT32_MAX / (grid.thin_groups * grid.long_groups * grid.slices)) {
    return cudaErrorInvalidConfiguration;
  }
  const auto blocks =
      static_cast<unsigned>(p.batch * grid.thin_groups * grid.long_groups * grid.slices);
  const SkinnyKernel kernel = plan.thin == 1   ? kernel_for<1>(plan)
                              : plan.thin == 4 ? kernel_for<4>(plan)
                                               : kernel_for<16>(plan);
  float* partials = static_cast<float*>(workspace);
  kernel<<<blocks, kWarps * 32, 0, stream>>>(p, grid, partials);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || grid.slices == 1) return error;
  return add_slices(p, partials, grid.slices, stream);
}

}  // namespace

const CudaRung skinny_rung = {
    11,      "skinny",         "few rows or columns: the large matrix is read once, at memory's speed",
    nullptr, skinny_workspace, launch_skinny};
