// CUDA 9: Hopper's copy engine fills the panels, warps of their own look after it, and each block
// stays on its multiprocessor and takes tile after tile.
//
// Removes: from rung 8, the copies' and addresses' share of the issue slots, about an eighth, the
//   two waits of all threads per stage, and the idle multiprocessors of the last round of tiles.
//   * Roles. Four producer warps only copy, eight consumer warps only multiply; they meet at
//     barriers in shared memory, one pair a stage ("full", "empty"), and never all at once. The
//     producers hand back registers (setmaxnreg: 40 a thread), so a consumer has 232: enough for
//     16 x 8 sums, which takes 6 vector loads for 128 FFMAs, where 8 x 8 takes 4 for 64.
//   * Copies. Where a matrix's lines are adjacent and aligned, one thread orders a whole panel from
//     the tensor memory accelerator (TMA). Any other view, a row-major A for one, is transposed on
//     its way by the producers' 4-byte copies: 32 to 64 a thread while a consumer does 4096 FFMAs.
//     A B of that kind is rearranged for TMA first where C has rows enough to repay it
//     (packed.cuh).
//   * Rounds. One block a multiprocessor, persistent: it fills the next tile's panels while the
//     last one's sums are stored, and the last round is shared out along K (stream_k.cuh).
// Leaves: 5% of the instructions in the consumers' loop are still vector loads, and some FFMAs wait
//   for a register bank (outer_product.cuh). A small C is better cut finer (rung 10).
// To read: PTX ISA on mbarrier and cp.async.bulk.tensor; CUTLASS's "warp specialization".
#include <cudaTypedefs.h>

#include <algorithm>
#include <cmath>

#include "cuda/cycles.h"
#include "cuda/hopper.cuh"
#include "cuda/kernels.h"
#include "cuda/outer_product.cuh"
#include "cuda/packed.cuh"
#include "cuda/panel_copy.cuh"
#include "cuda/stream_k.cuh"
#include "problem.h"

namespace {

using Warp = WarpTile<16, 8>;
constexpr int kRows = 2 * Warp::kHeight, kCols = 4 * Warp::kWidth;  // 128 x 256, by 2 x 4 warps
constexpr int kConsumers = 8;                                       // warps
constexpr int kProducerThreads = 128;  // setmaxnreg acts on groups of four warps
constexpr int kThreads = kConsumers * 32 + kProducerThreads;
constexpr int kDepth = 32;  // steps of K in a stage
constexpr int kStages = 4;

// TMA writes lines densely. The 4-byte copies of a transposing thread need the padding.
template <Copy kCopy, int kLines>
constexpr int kPanelStride = kCopy == Copy::kVectors ? kLines : kLines + 4;
template <Copy kCopyA, Copy kCopyB>
constexpr int kStageFloats = kDepth * (kPanelStride<kCopyA, kRows> + kPanelStride<kCopyB, kCols>);
template <Copy kCopyA, Copy kCopyB>
constexpr int kSharedBytes = kStages * (kStageFloats<kCopyA, kCopyB> * 4 + 2 * 8);

template <Copy kCopyA, Copy kCopyB>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_kernel(const __grid_constant__ CUtensorMap map_a,
                  const __grid_constant__ CUtensorMap map_b, const Problem p,
                  const Schedule schedule, float* partials, float alpha) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr bool kTmaA = kCopyA == Copy::kVectors, kTmaB = kCopyB == Copy::kVectors;
  constexpr int kStrideA = kPanelStride<kCopyA, kRows>, kStrideB = kPanelStride<kCopyB, kCols>;
  constexpr int kFloats = kStageFloats<kCopyA, kCopyB>;
  extern __shared__ __align__(128) float stages[];  // TMA writes to multiples of 128 bytes
  uint64_t* full = reinterpret_cast<uint64_t*>(stages + kStages * kFloats);
  uint64_t* empty = full + kStages;

  let_next_kernel_launch();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      // A panel is complete when TMA's bytes are there, announced by one arrival, and when each
      // producer thread's own copies are.
      hopper::barrier_init(full + i,
                           (kTmaA || kTmaB ? 1 : 0) + (kTmaA && kTmaB ? 0 : kProducerThreads));
      hopper::barrier_init(empty + i, kConsumers * 32);
    }
    hopper::fence_barrier_init();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  int stage = 0;
  uint32_t parity = 0;
  const auto advance = [&] {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };
  WorkList list(schedule);
  Work work;

  if (warp >= kConsumers) {
    hopper::give_registers<40>();
    const int thread = threadIdx.x - kConsumers * 32;
    if (kTmaA && kTmaB && thread != 0) return;
    while (list.next(work)) {
      const Origin tile = origin_of<kRows, kCols>(schedule, work.tile);
      const Problem one = p.at(tile.product);
      const int64_t k0 = static_cast<int64_t>(work.first) * kDepth;
      PanelCopy<kCopyA, kRows, kDepth, kProducerThreads, kStrideA> copy_a(lines_of_a(one), tile.row,
                                                                          p.M, k0, thread);
      PanelCopy<kCopyB, kCols, kDepth, kProducerThreads, kStrideB> copy_b(lines_of_b(one), tile.col,
                                                                          p.N, k0, thread);
      for (int step = work.first; step < work.last; ++step, advance()) {
        hopper::barrier_wait(empty + stage, parity ^ 1);
        float* a = stages + stage * kFloats;
        float* b = a + kDepth * kStrideA;
        const int64_t k = static_cast<int64_t>(step) * kDepth;
        if ((kTmaA || kTmaB) && thread == 0) {
          hopper::barrier_arrive_expect(full + stage,
                                        kDepth * 4 * ((kTmaA ? kRows : 0) + (kTmaB ? kCols : 0)));
          // The third coordinate is the product; a matrix that all share has only one.
          if (kTmaA) {
            hopper::copy_box(a, &map_a, full + stage, static_cast<int>(tile.row),
                             static_cast<int>(k), p.a.batch_stride ? tile.product : 0);
          }
          if (kTmaB) {
            hopper::copy_box(b, &map_b, full + stage, static_cast<int>(tile.col),
                             static_cast<int>(k), p.b.batch_stride ? tile.product : 0);
          }
        }
        if (!kTmaA) copy_a.start(a, p.K - k);
        if (!kTmaB) copy_b.start(b, p.K - k);
        if (!kTmaA || !kTmaB) hopper::barrier_arrive_after_copies(full + stage);
      }
    }
    return;
  }

  hopper::take_registers<232>();
  const int lane = threadIdx.x % 32;
  const int warp_row = warp / (kCols / Warp::kWidth) * Warp::kHeight;
  const int warp_col = warp % (kCols / Warp::kWidth) * Warp::kWidth;
  while (list.next(work)) {
    float sum[16][8] = {};
    for (int step = work.first; step < work.last; ++step, advance()) {
      hopper::barrier_wait(full + stage, parity);
      const float* a_panel = stages + stage * kFloats + warp_row;
      const float* b_panel = stages + stage * kFloats + kDepth * kStrideA + warp_col;
#pragma unroll 8  // few enough for the instruction cache, also beside the producers' loops
      for (int k = 0; k < kDepth; ++k) {
        float a[16], b[8];
        Warp::load(a_panel + k * kStrideA, b_panel + k * kStrideB, lane, a, b);
        outer_product<1>(sum, a, b);
      }
      hopper::barrier_arrive(empty + stage);
    }
    const Origin tile = origin_of<kRows, kCols>(schedule, work.tile);
    // To C, or to this block's slot, which holds a tile without gaps.
    const bool whole = work.slot < 0;
    float* to = whole ? p.c + tile.product * p.c_batch_stride + tile.row * p.c_stride + tile.col
                      : partials + static_cast<int64_t>(work.slot) * kRows * kCols;
    const int64_t stride = whole ? p.c_stride : kCols;
    Warp::store(sum, alpha, to + warp_row * stride + warp_col, stride,
                (whole ? p.M - tile.row : kRows) - warp_row,
                (whole ? p.N - tile.col : kCols) - warp_col, lane);
  }
#else
  __trap();  // built for 9.0 without the "a": rather an error than a C that nobody wrote
#endif
}

const char* hopper_missing(int compute_capability) {
  return compute_capability / 10 == 9 ? nullptr
                                      : "needs a GPU of compute capability 9.0 (TMA, setmaxnreg)";
}

// What TMA must know of a matrix whose lines are adjacent: sizes, strides, and the box it copies.
cudaError_t describe(CUtensorMap* map, const Lines& m, int64_t lines, int64_t K, int64_t batch,
                     int box_lines) {
  // From the driver by way of the runtime, so that nothing is linked against libcuda.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                     &found);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  if (encode == nullptr) return cudaErrorInsufficientDriver;
  const auto bytes = [](int64_t floats) { return static_cast<cuuint64_t>(floats) * 4; };
  const bool shared = m.batch_stride == 0;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(lines), static_cast<cuuint64_t>(K),
                               static_cast<cuuint64_t>(shared ? 1 : batch)};
  const cuuint64_t strides[2] = {bytes(m.k_stride), shared ? 16 : bytes(m.batch_stride)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(box_lines), kDepth, 1};
  const cuuint32_t every[3] = {1, 1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3, const_cast<float*>(m.first), sizes, strides,
             box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

bool fits(const Problem& p) {
  constexpr int64_t kMost = INT32_MAX - kRows * kCols;  // coordinates are 32-bit
  const int64_t tiles_m = ceil_div(p.M, kRows), tiles_n = ceil_div(p.N, kCols);
  return p.M < kMost && p.N < kMost && p.K < kMost && tiles_m <= kMost / tiles_n &&
         p.batch <= kMost / (tiles_m * tiles_n);
}

// Sharing out the last round saves the part of it in which processors would be idle, and costs
// writing and reading the partial sums: about as long as 5 steps of K of a tile (20 us, and 4.4 us
// a step, on an H100).
constexpr int kPartialsCost = 5;

Schedule schedule_for(const Problem& p, int processors) {
  Schedule s{};
  s.tiles_m = static_cast<int>(ceil_div(p.M, kRows));
  s.tiles_n = static_cast<int>(ceil_div(p.N, kCols));
  s.tiles = static_cast<int>(p.batch * s.tiles_m * s.tiles_n);
  s.steps = static_cast<int>(ceil_div(p.K, kDepth));
  const int rounds = s.tiles / processors, left = s.tiles % processors;
  const bool share = left > 0 && s.steps > 0 &&
                     static_cast<int64_t>(s.steps) * (processors - left) >
                         static_cast<int64_t>(kPartialsCost) * processors;
  s.whole = share ? rounds * processors : s.tiles;
  s.sharers = share ? static_cast<int>(std::min<int64_t>(processors, int64_t{left} * s.steps)) : 0;
  s.blocks = std::max(s.sharers, std::min(s.tiles, processors));
  return s;
}

double arithmetic_cycles(const Problem& p, int processors) {
  const Schedule s = schedule_for(p, processors);
  double steps = 1.0 * ceil_div(s.whole, processors) * s.steps;
  if (s.whole < s.tiles)
    steps += std::ceil(1.0 * (s.tiles - s.whole) * s.steps / s.sharers) + kPartialsCost;
  return steps * kDepth * kRows * kCols / kFmasPerCycle;
}

// Whether adjacent lines overlap from one step of K to the next, as in a sliding window: nothing
// promises that TMA takes such a stride.
bool overlaps(const Lines& m, int64_t lines, int64_t K) {
  return m.line_stride == 1 && K > 1 && m.k_stride < lines;
}

// What a B that TMA cannot read costs: producers that copy 4 bytes at a time slow the consumers
// down; or rearranging it once, which is writing and reading it, and one more launch.
constexpr double kCopiesOfB = 0.08;  // of the arithmetic
double pack_cycles(const Problem& p, int processors) {
  return 6000.0 + 2.0 * packed_bytes(p) / (kBytesPerCycle * processors);
}

bool packs(const Problem& p, int processors) {
  const Lines b = lines_of_b(p);
  int64_t blocks = 0;
  return p.K > 0 && (copy_for(b) != Copy::kVectors || overlaps(b, p.N, p.K)) &&
         pack_blocks(p, &blocks) &&
         pack_cycles(p, processors) < kCopiesOfB * arithmetic_cycles(p, processors);
}

// Of shapes alone (shape_cache.h): "auto" must not choose by whichever strides it met first.
double hopper_cycles(const Problem& p, int processors) {
  if (!fits(p)) return HUGE_VAL;
  return std::max(arithmetic_cycles(p, processors), memory_cycles(p, processors));
}

// Scratch memory: partial sums, and behind them a rearranged B.
size_t partials_bytes(const Problem& p, int processors) {
  const Schedule s = schedule_for(p, processors);
  return s.whole == s.tiles ? 0 : size_t{2} * s.sharers * kRows * kCols * sizeof(float);
}

size_t hopper_workspace(const Problem& p) {
  if (!fits(p)) return 0;
  const int processors = processor_count();
  return partials_bytes(p, processors) + (packs(p, processors) ? packed_bytes(p) : 0);
}

template <Copy kCopyA, Copy kCopyB>
cudaError_t launch(const Problem& p, void* workspace, cudaStream_t stream) {
  CUtensorMap map_a{}, map_b{};
  cudaError_t error = cudaSuccess;
  if (p.K > 0 && kCopyA == Copy::kVectors) {
    error = describe(&map_a, lines_of_a(p), p.M, p.K, p.batch, kRows);
  }
  if (p.K > 0 && error == cudaSuccess && kCopyB == Copy::kVectors) {
    error = describe(&map_b, lines_of_b(p), p.N, p.K, p.batch, kCols);
  }
  if (error != cudaSuccess) return error;
  const auto kernel = hopper_kernel<kCopyA, kCopyB>;
  constexpr int kBytes = kSharedBytes<kCopyA, kCopyB>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const Schedule s = schedule_for(p, processor_count());
  float* partials = static_cast<float*>(workspace);
  kernel<<<s.blocks, kThreads, kBytes, stream>>>(map_a, map_b, p, s, partials, 1.0f);
  error = cudaGetLastError();
  if (error != cudaSuccess || s.whole == s.tiles) return error;
  const int parts = (s.tiles - s.whole) * (kRows * kCols / 1024);
  return launch_behind(add_partials_kernel<kRows, kCols>, parts, 256, stream, p, s,
                       static_cast<const float*>(partials));
}

cudaError_t launch_hopper(const Problem& problem, void* workspace, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidConfiguration;
  Problem p = problem;
  const int processors = processor_count();
  if (packs(p, processors)) {
    auto* copy = static_cast<float*>(workspace) + partials_bytes(p, processors) / sizeof(float);
    const cudaError_t error = pack_b(p, copy, stream);
    if (error != cudaSuccess) return error;
    p = with_packed_b(p, copy);
  }
  if (overlaps(lines_of_a(p), p.M, p.K) || overlaps(lines_of_b(p), p.N, p.K)) {
    return launch<Copy::kAlongLines, Copy::kAlongLines>(p, workspace, stream);
  }
  return with_copies(p, [&](auto a, auto b) { return launch<a(), b()>(p, workspace, stream); });
}

}  // namespace

const CudaRung hopper_rung = {
    9,
    "hopper",
    "the copy engine and producer warps fill panels, consumers only multiply",
    hopper_missing,
    hopper_workspace,
    hopper_cycles,
    launch_hopper};
