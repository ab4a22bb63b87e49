// CUDA 11: a few rows (or columns) times a large matrix. The large one is read once, straight into
// registers, at the speed of memory.
//
// Removes: the work on rows that are not there: a tile of 32 rows for M = 1 does 32 times the
//   arithmetic. With M rows there are 2 M operations for each 4 bytes of B; an H100 has time for
//   about 70, so up to some 16 rows memory is the limit, and nothing but the large matrix's bytes
//   matters. Each of its values is used by one thread only, so it does not pass through shared
//   memory; the thin matrix is small enough to stay in L1.
// Leaves: from about 8 rows on, arithmetic, and loads of the thin matrix, which each thread
// repeats.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cuda/cycles.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/panel_copy.cuh"
#include "cuda/slices.cuh"

namespace {

constexpr int kWarps = 16;       // of a block that goes along lines, sharing out K
constexpr int kWarpsAlongK = 8;  // of one that goes along K, with lines of its own for each
constexpr int kLinesOfWarp = 2;
constexpr int kLeast = 32;  // steps of K that a part of them has at least

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
struct Cut {
  int64_t thin_groups, long_groups, slices;
};

struct Part {
  Problem p;
  Skinny s;
  int64_t thin, line;  // the block's first
  int64_t slice;
  bool thin_vectors;  // its lines can be read four steps of K at a time
};

// Part `index` of `parts` of K begins here; the one behind the last begins at K's end.
__device__ __forceinline__ int64_t part_of_k(int64_t K, int64_t index, int64_t parts) {
  const int64_t units = ceil_div(K, kLeast);
  return min(K, units * index / parts * kLeast);
}

__device__ __forceinline__ Part part_of(const Problem& problem, const Cut& cut, float* partials,
                                        int thin_per_block, int lines_per_block) {
  int64_t index = blockIdx.x;
  const int64_t long_group = index % cut.long_groups;
  index /= cut.long_groups;
  const int64_t slice = index % cut.slices;
  index /= cut.slices;
  const int64_t thin_group = index % cut.thin_groups;
  Part part;
  part.p = with_slice_for_c(problem, partials, cut.slices, slice).at(index / cut.thin_groups);
  part.s = skinny_of(part.p);
  part.thin = thin_group * thin_per_block;
  part.line = long_group * lines_per_block;
  part.slice = slice;
  const Lines& thin = part.s.thin;
  part.thin_vectors = thin.k_stride == 1 && thin.line_stride % 4 == 0 &&
                      reinterpret_cast<uintptr_t>(thin.first) % 16 == 0;
  return part;
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

// The block's t-th thin line. Past the last line the last is read again: its sums are not stored.
__device__ __forceinline__ const float* thin_line(const Part& part, int t) {
  const int64_t line = min(part.thin + t, part.s.thin_lines - 1);
  return part.s.thin.first + line * part.s.thin.line_stride;
}

// Four steps of K of a thin line, as one vector where it is adjacent and aligned.
template <bool kVector>
__device__ __forceinline__ void load_thin(const float* line, int64_t k, int64_t k_stride,
                                          float (&to)[4]) {
  if constexpr (kVector) {
    load_floats(line + k, to);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = __ldg(line + (k + i) * k_stride);
  }
}

// The large matrix's lines are adjacent (a row-major B): a thread owns kFloats of them and goes
// along K, each warp through a part of its own. At the end the warps' sums are added.
template <int kThin, int kFloats>
__global__ void __launch_bounds__(kWarps * 32)
    along_lines_kernel(const Problem problem, const Cut cut, float* partials) {
  __shared__ float sums[kWarps][32 * kFloats];
  wait_for_previous_kernel();
  const Part part = part_of(problem, cut, partials, kThin, 32 * kFloats);
  const Lines &m = part.s.large, &thin = part.s.thin;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t line = part.line + lane * kFloats;
  const int64_t index = part.slice * kWarps + warp, parts = cut.slices * kWarps;
  const int64_t k_first = part_of_k(part.p.K, index, parts);
  // A thread past the last line has no steps of K.
  const int64_t k_last =
      line < part.s.large_lines ? part_of_k(part.p.K, index + 1, parts) : k_first;

  float sum[kThin][kFloats] = {};
  const float* from = m.first + line * m.line_stride + k_first * m.k_stride;
  int64_t k = k_first;
  constexpr int kAhead = kThin == 8 ? 4 : 8;  // loads of the large matrix under way at a time
  const auto whole_turns = [&](auto vector) {
    for (; k + kAhead <= k_last; k += kAhead, from += kAhead * m.k_stride) {
      float values[kAhead][kFloats];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) load_floats(from + i * m.k_stride, values[i]);
#pragma unroll
      for (int i = 0; i < kAhead; i += 4) {
#pragma unroll
        for (int t = 0; t < kThin; ++t) {
          float a[4];  // the same for the whole warp
          load_thin<vector()>(thin_line(part, t), k + i, thin.k_stride, a);
#pragma unroll
          for (int j = 0; j < kFloats; ++j) {
#pragma unroll
            for (int l = 0; l < 4; ++l) sum[t][j] = fmaf(a[l], values[i + l][j], sum[t][j]);
          }
        }
      }
    }
  };
  if (part.thin_vectors) {
    whole_turns(std::true_type());
  } else {
    whole_turns(std::false_type());
  }
  for (; k < k_last; ++k, from += m.k_stride) {
    float values[kFloats];
    load_floats(from, values);
#pragma unroll
    for (int t = 0; t < kThin; ++t) {
      const float a = __ldg(thin_line(part, t) + k * thin.k_stride);
#pragma unroll
      for (int j = 0; j < kFloats; ++j) sum[t][j] = fmaf(a, values[j], sum[t][j]);
    }
  }

  let_next_kernel_launch();
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
__global__ void __launch_bounds__(kWarpsAlongK * 32)
    along_k_kernel(const Problem problem, const Cut cut, float* partials) {
  constexpr int kLines = kLinesOfWarp;
  wait_for_previous_kernel();
  const Part part = part_of(problem, cut, partials, kThin, kWarpsAlongK * kLines);
  const Lines &m = part.s.large, &thin = part.s.thin;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t line = part.line + warp * kLines;
  const int64_t k_first = part_of_k(part.p.K, part.slice, cut.slices);
  const int64_t k_last = part_of_k(part.p.K, part.slice + 1, cut.slices);

  float sum[kThin][kLines] = {};
  const auto load = [&](int64_t k, float (&values)[kLines][kFloats]) {
#pragma unroll
    for (int j = 0; j < kLines; ++j) {
      // Past the last line the last is read again: its sums are not stored.
      const int64_t at = min(line + j, part.s.large_lines - 1);
      load_floats(m.first + at * m.line_stride + k, values[j]);
    }
  };
  constexpr int kAhead = 4, kTurn = 32 * kFloats;  // steps of K that a warp takes at a time
  int64_t k = k_first + lane * kFloats;
  const auto step = [&](auto vector, int64_t at, const float (&values)[kLines][kFloats]) {
#pragma unroll
    for (int t = 0; t < kThin; ++t) {
      float a[kFloats];
      if constexpr (kFloats == 4) {
        load_thin<vector()>(thin_line(part, t), at, thin.k_stride, a);
      } else {
        a[0] = __ldg(thin_line(part, t) + at * thin.k_stride);
      }
#pragma unroll
      for (int j = 0; j < kLines; ++j) {
#pragma unroll
        for (int i = 0; i < kFloats; ++i) sum[t][j] = fmaf(a[i], values[j][i], sum[t][j]);
      }
    }
  };
  const auto all_turns = [&](auto vector) {
    for (; k + (kAhead - 1) * kTurn < k_last; k += kAhead * kTurn) {
      float values[kAhead][kLines][kFloats];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) load(k + i * kTurn, values[i]);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) step(vector, k + i * kTurn, values[i]);
    }
    for (; k < k_last; k += kTurn) {
      float values[kLines][kFloats];
      load(k, values);
      step(vector, k, values);
    }
  };
  if (part.thin_vectors) {
    all_turns(std::true_type());
  } else {
    all_turns(std::false_type());
  }
  let_next_kernel_launch();
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
  int thin;  // lines of the thin matrix that a block takes: 1, 4 or 8
  Cut cut;
};

Plan plan_for(const Problem& p, int processors) {
  const Skinny s = skinny_of(p);
  Plan plan{};
  plan.along_k = s.large.k_stride == 1 && s.large.line_stride != 1;
  plan.vectors = plan.along_k ? vectors_along_k(s.large, p.K)
                              : copy_for(s.large) == Copy::kVectors && s.large_lines % 4 == 0;
  plan.thin = s.thin_lines == 1 ? 1 : s.thin_lines <= 4 ? 4 : 8;
  const int64_t lines = plan.along_k ? kWarpsAlongK * kLinesOfWarp : plan.vectors ? 128 : 32;
  plan.cut.thin_groups = ceil_div(s.thin_lines, plan.thin);
  plan.cut.long_groups = ceil_div(s.large_lines, lines);
  // At least a block for nearly every multiprocessor.
  const int64_t blocks = p.batch * plan.cut.thin_groups * plan.cut.long_groups;
  const int64_t most = std::clamp<int64_t>(p.K / (kLeast * (plan.along_k ? 4 : kWarps)), 1, 256);
  plan.cut.slices =
      blocks * 10 >= processors * 9 ? 1 : std::clamp<int64_t>(2 * processors / blocks, 1, most);
  return plan;
}

size_t skinny_workspace(const Problem& p) {
  return slices_bytes(p, plan_for(p, processor_count()).cut.slices);
}

double skinny_cycles(const Problem& p, int processors) {
  // By sizes alone, as if both matrices were row-major: "auto" must not choose another rung, and
  // with it other bits, for the same values in another layout.
  const int64_t thin = std::min(p.M, p.N);
  if (thin > 8) return HUGE_VAL;
  // A thin B is read across its rows, which takes the longer the more columns it has.
  const double reads = p.M <= p.N || thin == 1 ? 1.0 : 1.0 + 0.25 * thin;
  return memory_cycles(p, processors) * reads;
}

using SkinnyKernel = void (*)(Problem, Cut, float*);

template <int kThin>
SkinnyKernel kernel_for(const Plan& plan) {
  if (plan.along_k) return plan.vectors ? along_k_kernel<kThin, 4> : along_k_kernel<kThin, 1>;
  return plan.vectors ? along_lines_kernel<kThin, 4> : along_lines_kernel<kThin, 1>;
}

cudaError_t launch_skinny(const Problem& p, void* workspace, cudaStream_t stream) {
  const Plan plan = plan_for(p, processor_count());
  const Cut& cut = plan.cut;
  if (cut.thin_groups > INT32_MAX / cut.long_groups ||
      p.batch > INT32_MAX / (cut.thin_groups * cut.long_groups * cut.slices)) {
    return cudaErrorInvalidConfiguration;
  }
  const int64_t blocks = p.batch * cut.thin_groups * cut.long_groups * cut.slices;
  const SkinnyKernel kernel = plan.thin == 1   ? kernel_for<1>(plan)
                              : plan.thin == 4 ? kernel_for<4>(plan)
                                               : kernel_for<8>(plan);
  float* partials = static_cast<float*>(workspace);
  const int threads = 32 * (plan.along_k ? kWarpsAlongK : kWarps);
  const cudaError_t error = launch_behind(kernel, {blocks, threads}, stream, p, cut, partials);
  if (error != cudaSuccess || cut.slices == 1) return error;
  return add_slices(p, partials, cut.slices, stream);
}

}  // namespace

const CudaRung skinny_rung = {
    11,
    "skinny",
    "few rows or columns: the large matrix is read once, at memory's speed",
    nullptr,
    skinny_workspace,
    skinny_cycles,
    launch_skinny};
