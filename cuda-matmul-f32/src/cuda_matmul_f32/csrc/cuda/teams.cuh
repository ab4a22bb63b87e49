// The tile of C that a block of rung 9 computes, and what its consumer warps do where there are
// more of them than such a tile has warps' outputs: two teams, each with all of the outputs, share
// out the steps of K in every stage, and add their sums at the end.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/outer_product.cuh"

using Warp = WarpTile<16, 8>;
constexpr int kConsumers = 8;  // warps

template <int kDown, int kAcross, int kStages_>
struct BlockTile {
  static constexpr int kWarpsAcross = kAcross, kStages = kStages_;
  static constexpr int kRows = kDown * Warp::kHeight, kCols = kAcross * Warp::kWidth;
  static constexpr int kTeams = kConsumers / (kDown * kAcross);
  static constexpr int kExchanged = kTeams == 2 ? kRows * kCols : 0;  // floats, of both teams
  static_assert(kTeams == 1 || kTeams == 2);
};

// Adds the two teams' sums. Each gives the other half of its rows away, through `exchange`, and
// ends with the totals of the half that it keeps: rows 32 * team and on of its warps' tiles.
__device__ __forceinline__ void add_teams(const float (&sum)[16][8], float alpha, float* exchange,
                                          int team, int thread, float (&half)[8][8]) {
  constexpr int kTeamThreads = kConsumers / 2 * 32;
  const auto meet = [] { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers * 32) : "memory"); };
  const auto give_and_keep = [&](auto kept) {
    constexpr int kKept = decltype(kept)::value * 8, kGiven = 8 - kKept;
    float4* to = reinterpret_cast<float4*>(exchange) + team * 16 * kTeamThreads + thread;
#pragma unroll
    for (int at = 0; at < 16; ++at) {  // times alpha as in WarpTile::store()
      const float* four = sum[kGiven + at / 2] + at % 2 * 4;
      to[at * kTeamThreads] =
          make_float4(four[0] * alpha, four[1] * alpha, four[2] * alpha, four[3] * alpha);
    }
    meet();
    const float4* from =
        reinterpret_cast<const float4*>(exchange) + (1 - team) * 16 * kTeamThreads + thread;
#pragma unroll
    for (int at = 0; at < 16; ++at) {
      const float4 more = from[at * kTeamThreads];
      const float* four = sum[kKept + at / 2] + at % 2 * 4;
      float* total = half[at / 2] + at % 2 * 4;
      total[0] = four[0] + more.x, total[1] = four[1] + more.y;
      total[2] = four[2] + more.z, total[3] = four[3] + more.w;
    }
  };
  meet();  // until then the last tile's sums are read
  if (team == 0) {
    give_and_keep(std::integral_constant<int, 0>());
  } else {
    give_and_keep(std::integral_constant<int, 1>());
  }
}
