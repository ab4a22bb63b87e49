// CUDA 10: a small C is cut finer, and along K as well, until every multiprocessor has work.
//
// Removes: the idle multiprocessors. A C of 512 x 512 is 16 tiles of 128 x 128 for 132
//   multiprocessors; as 64 tiles of 64 x 64 with K in 8 slices it is 512 blocks, four for each. A C
//   of 128 x 128 with a K of 16384 becomes hundreds of blocks where it was one.
// Leaves: the partial sums, written once and read once (slices.cuh), and a second launch, about 2 us
//   in all; panels of 64 lines are used half as often as those of 128, so more of the time goes to
//   copies. That pays for small C only.
#include <algorithm>
#include <cmath>

#include "cuda/async_tile.cuh"
#include "cuda/kernels.h"
#include "cuda/slices.cuh"

namespace {

using Large = AsyncTile<4, 2>;  // 128 x 128
using Small = AsyncTile<2, 1>;  // 64 x 64

struct Plan {
  bool small;
  int64_t slices;
};

// Estimated cycles, of which only the order between plans matters. A multiprocessor does 128 FMAs a
// cycle at best, and needs 8 warps for that.
constexpr double kShare = 0.8;  // of the peak, as measured for rung 8

template <class T>
double cycles(const Problem& p, int64_t slices, int processors) {
  const double tiles = 1.0 * p.batch * ((p.M + T::kRows - 1) / T::kRows) *
                       ((p.N + T::kCols - 1) / T::kCols);
  const double per_processor = std::ceil(tiles * slices / processors);
  const double steps = std::ceil(std::ceil(1.0 * p.K / T::kDepth) / slices) * T::kDepth;
  const double busy = std::min(1.0, per_processor * T::kThreads / 256.0);
  const double arithmetic = per_processor * T::kRows * T::kCols * steps / (128 * busy * kShare);
  const double partials = slices == 1 ? 0.0 : 3000.0 + slices * p.batch * p.M * p.N * 8.0 / 2000;
  return arithmetic + partials;
}

Plan plan_for(const Problem& p) {
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  Plan best{false, 1};
  double least = cycles<Large>(p, 1, processors);
  const int64_t most = std::clamp<int64_t>(p.K / 64, 1, 256);  // a slice of 4 stages at least
  for (int64_t slices = 1; slices <= most; ++slices) {
    for (const bool small : {false, true}) {
      const double cost =
          small ? cycles<Small>(p, slices, processors) : cycles<Large>(p, slices, processors);
      if (cost < least) {
        least = cost;
        best = {small, slices};
      }
    }
  }
  return best;
}

size_t split_k_workspace(const Problem& p) {
  return slices_bytes(p, plan_for(p).slices);
}

cudaError_t launch_split_k(const Problem& p, void* workspace, cudaStream_t stream) {
  const Plan plan = plan_for(p);
  float* partials = static_cast<float*>(workspace);
  const cudaError_t error = plan.small ? launch_async_tile<Small>(p, plan.slices, partials, stream)
                                       : launch_async_tile<Large>(p, plan.slices, partials, stream);
  if (error != cudaSuccess || plan.slices == 1) return error;
  return add_slices(p, partials, plan.slices, stream);
}

}  // namespace

const CudaRung split_k_rung = {10,
                               "split_k",
                               "small tiles and slices of K keep every multiprocessor busy",
                               nullptr,
                               split_k_workspace,
                               launch_split_k};
