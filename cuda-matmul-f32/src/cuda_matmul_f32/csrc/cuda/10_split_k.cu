// CUDA 10: a small C is cut finer, and its warps share out K instead of the tile: each of a block's
// 8 warps computes the whole tile for an eighth of K, at its own pace, and at the end the warps'
// sums are added.
//
// Removes: the idle multiprocessors, and the waiting. A C of 512 x 512 is 16 tiles of 128 x 128 for
//   132 multiprocessors, but 128 of 32 x 64, and 8 warps on each still do 8 x 8 outputs a thread. A
//   warp copies its own panels, so it waits for nobody's copies but its own, and the block meets
//   once. Where even that leaves multiprocessors idle, as for a C of 128 x 128 with a K of 16384,
//   blocks take slices of K as well, and a second kernel adds these up (slices.cuh). Both additions
//   have a fixed order: the same bits on each run.
// Leaves: a value of a panel of 32 or 64 lines is used a quarter or half as often as in rung 8, so
//   panels come from L2 two to four times as fast; that and the additions pay for small C only.
#include <algorithm>
#include <cmath>

#include "cuda/cycles.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/outer_product.cuh"
#include "cuda/panel_copy.cuh"
#include "cuda/shape_cache.h"
#include "cuda/slices.cuh"

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kDepth = 8;  // steps of K in a warp's stage
constexpr int kStages = 3;

// A block's tile, which each of its warps computes: kOutRows x kOutCols outputs a thread. A larger
// tile makes more of each value that it loads, and takes longer to begin and to end: kPercent of
// the peak, and kOverhead cycles a block, as fitted to 528 measurements on an H100.
template <int kOutRows, int kOutCols, int kBlocks_, int kPercent_, int kOverhead_>
struct SharedTile {
  using Warp = WarpTile<kOutRows, kOutCols>;
  static constexpr int kThreadRows = kOutRows, kThreadCols = kOutCols;
  static constexpr int kRows = Warp::kHeight, kCols = Warp::kWidth;
  static constexpr int kBlocks = kBlocks_;  // on a multiprocessor at a time
  static constexpr int kPercent = kPercent_, kOverhead = kOverhead_;
  static constexpr int kStrideA = kRows + 4, kStrideB = kCols + 4;
  static constexpr int kStageFloats = kDepth * (kStrideA + kStrideB);
  static constexpr int kWarpFloats = std::max(kStages * kStageFloats, kRows* kCols);
  static constexpr int kSharedBytes = kWarps * kWarpFloats * 4;
};

// One block has the registers to itself where a thread would otherwise be held to 128, which it can
// only do against the register banks (outer_product.cuh).
using Large = SharedTile<16, 8, 1, 64, 4000>;  // 64 x 64
using Middle = SharedTile<8, 8, 1, 57, 3100>;  // 32 x 64
using Small = SharedTile<8, 4, 2, 46, 1000>;   // 32 x 32
static_assert(
    Middle::kSharedBytes <= 99 << 10 && Small::kSharedBytes <= 99 << 10,
    "every GPU from compute capability 8.0 on has room for these; Large needs 8.0 or 9.0");

template <class T, Copy kCopyA, Copy kCopyB>
__global__ void __launch_bounds__(kThreads, T::kBlocks)
    split_k_kernel(const Problem problem, int64_t slices, float* partials, float alpha) {
  extern __shared__ __align__(16) float shared[];
  wait_for_previous_kernel();
  const int64_t tiles = gridDim.x / slices, slice = blockIdx.x / tiles;
  const Origin tile = tile_origin<T::kRows, T::kCols>(problem, blockIdx.x % tiles);
  const Problem p = with_slice_for_c(problem, partials, slices, slice).at(tile.product);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  // This warp's part of K, in whole stages: only the very last one has a ragged end.
  const int64_t all = ceil_div(p.K, kDepth), parts = slices * kWarps;
  const int64_t part = slice * kWarps + warp;
  const int64_t k_first = all * part / parts * kDepth;
  const int64_t k_last = min(p.K, all * (part + 1) / parts * kDepth);

  float* stages = shared + warp * T::kWarpFloats;
  PanelCopy<kCopyA, T::kRows, kDepth, 32, T::kStrideA, 4> copy_a(lines_of_a(p), tile.row, p.M,
                                                                 k_first, lane);
  PanelCopy<kCopyB, T::kCols, kDepth, 32, T::kStrideB, 4> copy_b(lines_of_b(p), tile.col, p.N,
                                                                 k_first, lane);
  const auto start_copies = [&](int64_t k, int stage) {
    float* a = stages + stage * T::kStageFloats;
    if (k < k_last) {
      copy_a.start(a, k_last - k);
      copy_b.start(a + kDepth * T::kStrideA, k_last - k);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");  // also an empty one: wait_group counts
  };

  for (int i = 0; i < kStages - 1; ++i) start_copies(k_first + i * kDepth, i);
  float sum[T::kThreadRows][T::kThreadCols] = {};
  int stage = 0;
  for (int64_t k0 = k_first; k0 < k_last; k0 += kDepth) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncwarp();  // this stage's copies by all lanes, and all have read the stage filled next
    const float* a_panel = stages + stage * T::kStageFloats;
    const float* b_panel = a_panel + kDepth * T::kStrideA;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      // Not before the first loads of this stage, which would have to queue up behind the copies.
      if (k == 2) start_copies(k0 + (kStages - 1) * kDepth, (stage + kStages - 1) % kStages);
      float a[T::kThreadRows], b[T::kThreadCols];
      T::Warp::load(a_panel + k * T::kStrideA, b_panel + k * T::kStrideB, lane, a, b);
      outer_product(sum, a, b);
    }
    stage = (stage + 1) % kStages;
  }

  let_next_kernel_launch();
  // The warps' sums, where their panels were, and then their total, which is C or a slice of it.
  __syncwarp();
  T::Warp::store(sum, alpha, stages, T::kCols, T::kRows, T::kCols, lane);
  __syncthreads();
  const bool vectors = p.c_stride % 4 == 0 && reinterpret_cast<uintptr_t>(p.c) % 16 == 0;
#pragma unroll
  for (int at = threadIdx.x * 4; at < T::kRows * T::kCols; at += kThreads * 4) {
    float4 total = *reinterpret_cast<const float4*>(shared + at);
#pragma unroll
    for (int other = 1; other < kWarps; ++other) {
      const float4 more = *reinterpret_cast<const float4*>(shared + other * T::kWarpFloats + at);
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
    const int64_t row = tile.row + at / T::kCols, col = tile.col + at % T::kCols;
    if (row >= p.M) continue;
    float* c = p.c + row * p.c_stride + col;
    if (vectors && col + 4 <= p.N) {
      *reinterpret_cast<float4*>(c) = total;
    } else {
      const float out[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (col + j < p.N) c[j] = out[j];
      }
    }
  }
}

enum class Cut { kSmall, kMiddle, kLarge };

struct Plan {
  Cut cut;
  int64_t slices;
  double cycles;
};

template <class T>
Plan cost(const Problem& p, Cut cut, int64_t slices, int processors) {
  const double blocks = 1.0 * slices * p.batch * ceil_div(p.M, T::kRows) * ceil_div(p.N, T::kCols);
  const double rounds = std::ceil(blocks / processors);  // of the busiest multiprocessor
  const double steps = 1.0 * ceil_div(ceil_div(p.K, kDepth), slices * kWarps) * kDepth * kWarps;
  const double arithmetic =
      rounds * (T::kOverhead + T::kRows * T::kCols * steps / (kFmasPerCycle * T::kPercent / 100.0));
  // A second launch, and partial sums written and read once, in L2.
  const double partials =
      slices == 1 ? 0.0 : 3400.0 + slices * p.batch * p.M * p.N * 8.0 / (10 * processors);
  return {cut, slices, std::max(arithmetic, memory_cycles(p, processors)) + partials};
}

Plan find_plan(const Problem& p, int processors, bool large_fits) {
  Plan best{Cut::kMiddle, 1, HUGE_VAL};
  const auto consider = [&](const Plan& plan) {
    if (plan.cycles < best.cycles) best = plan;
  };
  // A warp's part is four stages at least.
  const int64_t most = std::clamp<int64_t>(p.K / (kWarps * kDepth * 4), 1, 256);
  for (int64_t slices = 1; slices <= most; ++slices) {
    if (large_fits) consider(cost<Large>(p, Cut::kLarge, slices, processors));
    consider(cost<Middle>(p, Cut::kMiddle, slices, processors));
    consider(cost<Small>(p, Cut::kSmall, slices, processors));
  }
  return best;
}

const Plan& plan_for(const Problem& p, int processors) {
  static thread_local ShapeCache<Plan> cache;
  const bool large_fits = Large::kSharedBytes <= shared_memory_limit();
  return cache.get(p, 2 * processors + large_fits,
                   [&] { return find_plan(p, processors, large_fits); });
}

size_t split_k_workspace(const Problem& p) {
  return slices_bytes(p, plan_for(p, processor_count()).slices);
}

template <class T, Copy kCopyA, Copy kCopyB>
cudaError_t launch(const Problem& p, int64_t slices, float* partials, cudaStream_t stream) {
  const auto kernel = split_k_kernel<T, kCopyA, kCopyB>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  if (error != cudaSuccess) return error;
  int64_t blocks = 0;
  if (!block_count(p, T::kRows, T::kCols, &blocks) || blocks > INT32_MAX / slices) {
    return cudaErrorInvalidConfiguration;
  }
  return launch_behind(kernel, {blocks * slices, kThreads, T::kSharedBytes}, stream, p, slices,
                       partials, 1.0f);
}

cudaError_t launch_split_k(const Problem& p, void* workspace, cudaStream_t stream) {
  const Plan plan = plan_for(p, processor_count());
  float* partials = static_cast<float*>(workspace);
  const cudaError_t error = with_copies(p, [&](auto a, auto b) {
    switch (plan.cut) {
      case Cut::kSmall:
        return launch<Small, a(), b()>(p, plan.slices, partials, stream);
      case Cut::kMiddle:
        return launch<Middle, a(), b()>(p, plan.slices, partials, stream);
      default:
        return launch<Large, a(), b()>(p, plan.slices, partials, stream);
    }
  });
  if (error != cudaSuccess || plan.slices == 1) return error;
  return add_slices(p, partials, plan.slices, stream);
}

double split_k_cycles(const Problem& p, int processors) {
  return plan_for(p, processors).cycles;
}

}  // namespace

const CudaRung split_k_rung = {10,
                               "split_k",
                               "small tiles, and warps and blocks that share out K",
                               nullptr,
                               split_k_workspace,
                               split_k_cycles,
                               launch_split_k};
