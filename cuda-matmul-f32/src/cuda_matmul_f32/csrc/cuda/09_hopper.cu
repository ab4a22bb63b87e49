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
//     last one's sums are stored, and the last round is shared out along K (stream_k.cuh). A C that
//     few tiles cover is cut into smaller ones (hopper_plan.cuh), each by two teams (teams.cuh).
// Leaves: 5% of the instructions in the consumers' loop are still vector loads, and some FFMAs wait
//   for a register bank (outer_product.cuh). What begins and ends a tile takes longer than a C of
//   512 x 512 has work for: that is rung 10's.
// To read: PTX ISA on mbarrier and cp.async.bulk.tensor; CUTLASS's "warp specialization".
#include <algorithm>
#include <cmath>

#include "cuda/cycles.h"
#include "cuda/hopper.cuh"
#include "cuda/hopper_plan.cuh"
#include "cuda/kernels.h"
#include "cuda/packed.cuh"
#include "cuda/panel_copy.cuh"
#include "cuda/teams.cuh"
#include "cuda/tensor_map.cuh"
#include "problem.h"

namespace {

constexpr int kProducerThreads = 128;  // setmaxnreg acts on groups of four warps
constexpr int kThreads = kConsumers * 32 + kProducerThreads;

// TMA writes lines densely. The 4-byte copies of a transposing thread need the padding.
template <Copy kCopy, int kLines>
constexpr int kPanelStride = kCopy == Copy::kVectors ? kLines : kLines + 4;
template <class T, Copy kCopyA, Copy kCopyB>
constexpr int kStageFloats =
    kDepth * (kPanelStride<kCopyA, T::kRows> + kPanelStride<kCopyB, T::kCols>);
template <class T, Copy kCopyA, Copy kCopyB>
constexpr int kSharedBytes =
    T::kStages * (kStageFloats<T, kCopyA, kCopyB> * 4 + 2 * 8) + T::kExchanged * 4;

template <class T, Copy kCopyA, Copy kCopyB>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_kernel(const __grid_constant__ CUtensorMap map_a,
                  const __grid_constant__ CUtensorMap map_b, const Problem p,
                  const Schedule schedule, float* partials, float alpha) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr bool kTmaA = kCopyA == Copy::kVectors, kTmaB = kCopyB == Copy::kVectors;
  constexpr int kRows = T::kRows, kCols = T::kCols, kStages = T::kStages;
  constexpr int kStrideA = kPanelStride<kCopyA, kRows>, kStrideB = kPanelStride<kCopyB, kCols>;
  constexpr int kFloats = kStageFloats<T, kCopyA, kCopyB>;
  extern __shared__ __align__(128) float stages[];  // TMA writes to multiples of 128 bytes
  float* exchange = stages + kStages * kFloats;
  uint64_t* full = reinterpret_cast<uint64_t*>(exchange + T::kExchanged);
  uint64_t* empty = full + kStages;

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
  wait_for_previous_kernel();
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
  constexpr int kTeamWarps = kConsumers / T::kTeams, kTeamSteps = kDepth / T::kTeams;
  const int team = T::kTeams == 1 ? 0 : warp / kTeamWarps, team_warp = warp % kTeamWarps;
  const int warp_row = team_warp / T::kWarpsAcross * Warp::kHeight;
  const int warp_col = team_warp % T::kWarpsAcross * Warp::kWidth;
  while (list.next(work)) {
    float sum[16][8] = {};
    for (int step = work.first; step < work.last; ++step, advance()) {
      hopper::barrier_wait(full + stage, parity);
      const float* a_panel = stages + stage * kFloats + team * kTeamSteps * kStrideA + warp_row;
      const float* b_panel =
          stages + stage * kFloats + kDepth * kStrideA + team * kTeamSteps * kStrideB + warp_col;
#pragma unroll 8  // few enough for the instruction cache, also beside the producers' loops
      for (int k = 0; k < kTeamSteps; ++k) {
        float a[16], b[8];
        Warp::load(a_panel + k * kStrideA, b_panel + k * kStrideB, lane, a, b);
        outer_product<1>(sum, a, b);
      }
      hopper::barrier_arrive(empty + stage);
    }
    let_next_kernel_launch();
    const Origin tile = origin_of<kRows, kCols>(schedule, work.tile);
    // To C, or to this block's slot, which holds a tile without gaps.
    const bool whole = work.slot < 0;
    float* to = whole ? p.c + tile.product * p.c_batch_stride + tile.row * p.c_stride + tile.col
                      : partials + static_cast<int64_t>(work.slot) * kRows * kCols;
    const int64_t stride = whole ? p.c_stride : kCols;
    const int64_t rows = whole ? p.M - tile.row : kRows, cols = whole ? p.N - tile.col : kCols;
    if constexpr (T::kTeams == 1) {
      Warp::store(sum, alpha, to + warp_row * stride + warp_col, stride, rows - warp_row,
                  cols - warp_col, lane);
    } else {
      using HalfWarp = WarpTile<8, 8>;
      float half[8][8];
      add_teams(sum, alpha, exchange, team, threadIdx.x % (kTeamWarps * 32), half);
      const int row = warp_row + team * HalfWarp::kHeight;
      HalfWarp::store(half, alpha, to + row * stride + warp_col, stride, rows - row,
                      cols - warp_col, lane);
    }
  }
#else
  __trap();  // built for 9.0 without the "a": rather an error than a C that nobody wrote
#endif
}

const char* hopper_missing(int compute_capability) {
  return compute_capability / 10 == 9 ? nullptr
                                      : "needs a GPU of compute capability 9.0 (TMA, setmaxnreg)";
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

bool packs(const Problem& p, const Plan& plan, int processors) {
  const Lines b = lines_of_b(p);
  int64_t blocks = 0;
  return p.K > 0 && (copy_for(b) != Copy::kVectors || overlaps(b, p.N, p.K)) &&
         pack_blocks(p, &blocks) && pack_cycles(p, processors) < kCopiesOfB * plan.cycles;
}

// Of shapes alone (shape_cache.h): "auto" must not choose by whichever strides it met first.
double hopper_cycles(const Problem& p, int processors) {
  if (!fits(p)) return HUGE_VAL;
  return std::max(plan_for(p, processors).cycles, memory_cycles(p, processors));
}

// Scratch memory: partial sums, and behind them a rearranged B.
size_t hopper_workspace(const Problem& p) {
  if (!fits(p)) return 0;
  const int processors = processor_count();
  const Plan plan = plan_for(p, processors);
  return plan.partials_bytes() + (packs(p, plan, processors) ? packed_bytes(p) : 0);
}

template <class T, Copy kCopyA, Copy kCopyB>
cudaError_t launch(const Problem& p, const Schedule& s, float* partials, cudaStream_t stream) {
  CUtensorMap map_a{}, map_b{};
  const auto kernel = hopper_kernel<T, kCopyA, kCopyB>;
  constexpr int kBytes = kSharedBytes<T, kCopyA, kCopyB>;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (p.K > 0 && error == cudaSuccess && kCopyA == Copy::kVectors) {
    error = describe(&map_a, lines_of_a(p), p.M, p.K, p.batch, T::kRows, kDepth);
  }
  if (p.K > 0 && error == cudaSuccess && kCopyB == Copy::kVectors) {
    error = describe(&map_b, lines_of_b(p), p.N, p.K, p.batch, T::kCols, kDepth);
  }
  if (error != cudaSuccess) return error;
  error = launch_behind(kernel, {s.blocks, kThreads, kBytes}, stream, map_a, map_b, p, s, partials,
                        1.0f);
  if (error != cudaSuccess || s.sharers == 0) return error;
  const int64_t parts = int64_t{s.tiles - s.whole} * (T::kRows * T::kCols / 1024);
  return launch_behind(add_partials_kernel<T::kRows, T::kCols>, {parts, 256}, stream, p, s,
                       partials);
}

cudaError_t launch_hopper(const Problem& problem, void* workspace, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidConfiguration;
  Problem p = problem;
  const int processors = processor_count();
  const Plan plan = plan_for(p, processors);
  float* partials = static_cast<float*>(workspace);
  if (packs(p, plan, processors)) {
    float* copy = partials + plan.partials_bytes() / sizeof(float);
    const cudaError_t error = pack_b(p, copy, stream);
    if (error != cudaSuccess) return error;
    p = with_packed_b(p, copy);
  }
  const auto launch_with = [&](auto a, auto b) {
    return plan.small ? launch<Small, a(), b()>(p, plan.schedule, partials, stream)
                      : launch<Large, a(), b()>(p, plan.schedule, partials, stream);
  };
  if (overlaps(lines_of_a(p), p.M, p.K) || overlaps(lines_of_b(p), p.N, p.K)) {
    constexpr std::integral_constant<Copy, Copy::kAlongLines> any;
    return launch_with(any, any);
  }
  return with_copies(p, launch_with);
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
