// CUDA 8: copies run ahead. While a block computes with one stage of panels, the copies of the
// next three are under way (cp.async), so no thread waits for memory.
//
// Removes: from rung 7, the trip of each value through registers on its way to shared memory, and
//   the wait for it: a load from device memory takes some 600 cycles, a stage's arithmetic about
//   1200 for a quarter of a multiprocessor, and up to three stages may be late before anyone waits.
//   Views of any strides are copied at full width, or transposed, or one by one (panel_copy.cuh).
// Leaves: one barrier of all threads a stage; copying and its addresses, an eighth of the
//   instructions; an eighth more are loads from shared memory; and tiles of 128 x 128 leave most of
//   a GPU idle if C is small, and part of it in the last round of tiles.
// To read: CUDA Programming Guide, "Asynchronous Data Copies".
#include <algorithm>
#include <cmath>

#include "cuda/cycles.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/outer_product.cuh"
#include "cuda/panel_copy.cuh"

namespace {

using Warp = WarpTile<8, 8>;
constexpr int kRows = 4 * Warp::kHeight;
constexpr int kCols = 2 * Warp::kWidth;
constexpr int kThreads = 256;
constexpr int kDepth = 16;  // steps of K in a stage
constexpr int kStages = 4;  // one is computed with while three are under way
constexpr int kStrideA = kRows + 4, kStrideB = kCols + 4;
constexpr int kStageFloats = kDepth * (kStrideA + kStrideB);
constexpr int kSharedBytes = kStages * kStageFloats * 4;
// 128 registers a thread: that many blocks fit beside each other on a multiprocessor.
constexpr int kBlocks = 512 / kThreads;

template <Copy kCopyA, Copy kCopyB>
__global__ void __launch_bounds__(kThreads, kBlocks)
    async_pipeline_kernel(const Problem problem, float alpha) {
  extern __shared__ __align__(16) float stages[];
  const Origin tile = tile_origin<kRows, kCols>(problem);
  const Problem p = problem.at(tile.product);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_row = warp / (kCols / Warp::kWidth) * Warp::kHeight;
  const int warp_col = warp % (kCols / Warp::kWidth) * Warp::kWidth;

  PanelCopy<kCopyA, kRows, kDepth, kThreads, kStrideA> copy_a(lines_of_a(p), tile.row, p.M, 0,
                                                              thread);
  PanelCopy<kCopyB, kCols, kDepth, kThreads, kStrideB> copy_b(lines_of_b(p), tile.col, p.N, 0,
                                                              thread);
  const auto start_copies = [&](int64_t k, int stage) {
    float* a = stages + stage * kStageFloats;
    if (k < p.K) {
      copy_a.start(a, p.K - k);
      copy_b.start(a + kDepth * kStrideA, p.K - k);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");  // also an empty one: wait_group counts
  };

  for (int i = 0; i < kStages - 1; ++i) start_copies(i * kDepth, i);
  float sum[8][8] = {};
  int stage = 0;
  for (int64_t k0 = 0; k0 < p.K; k0 += kDepth) {
    // All groups but the newest kStages - 2 are complete: this stage's copies by this thread ...
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncthreads();  // ... and by all. Also, all have read the stage that is filled next.
    const float* a_panel = stages + stage * kStageFloats + warp_row;
    const float* b_panel = stages + stage * kStageFloats + kDepth * kStrideA + warp_col;
    // In halves: with all 16 steps in one piece of code, the compiler numbers the sums against
    // outer_product(). The copies go between, not before the first loads, which would queue up
    // behind them.
#pragma unroll 1
    for (int half = 0; half < kDepth; half += kDepth / 2) {
#pragma unroll
      for (int k = half; k < half + kDepth / 2; ++k) {
        float a[8], b[8];
        Warp::load(a_panel + k * kStrideA, b_panel + k * kStrideB, lane, a, b);
        outer_product(sum, a, b);
      }
      if (half == 0) start_copies(k0 + (kStages - 1) * kDepth, (stage + kStages - 1) % kStages);
    }
    stage = (stage + 1) % kStages;
  }
  const int64_t row = tile.row + warp_row, col = tile.col + warp_col;
  Warp::store(sum, alpha, p.c + row * p.c_stride + col, p.c_stride, p.M - row, p.N - col, lane);
}

template <Copy kCopyA, Copy kCopyB>
cudaError_t launch(const Problem& p, cudaStream_t stream) {
  const auto kernel = async_pipeline_kernel<kCopyA, kCopyB>;
  // On every call, since the attribute belongs to the current device; it costs well under 1 us.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  int64_t blocks = 0;
  if (!block_count(p, kRows, kCols, &blocks)) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), kThreads, kSharedBytes, stream>>>(p, 1.0f);
  return cudaGetLastError();
}

cudaError_t launch_async_pipeline(const Problem& p, void*, cudaStream_t stream) {
  return with_copies(p, [&](auto a, auto b) { return launch<a(), b()>(p, stream); });
}

double async_pipeline_cycles(const Problem& p, int processors) {
  const double tiles = 1.0 * p.batch * ceil_div(p.M, kRows) * ceil_div(p.N, kCols);
  const double rounds = std::ceil(tiles / processors);  // of the busiest multiprocessor
  // While one of a multiprocessor's two blocks stores its tile, the other may still multiply.
  const double store = kRows * kCols * 4 / kBytesPerCycle / 2;
  return std::max(rounds * (kRows * kCols * p.K / kFmasPerCycle + store),
                  memory_cycles(p, processors));
}

}  // namespace

const CudaRung async_pipeline_rung = {8,
                                      "async_pipeline",
                                      "panels are copied three stages ahead (cp.async)",
                                      nullptr,
                                      nullptr,
                                      async_pipeline_cycles,
                                      launch_async_pipeline};
