// How rung 9 cuts a product up: into which tiles, and among how many blocks. Each way's cycles are
// estimated from the shape alone, and the least taken.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/cycles.h"
#include "cuda/stream_k.cuh"
#include "cuda/teams.cuh"
#include "problem.h"

using Large = BlockTile<2, 4, 4>;  // 128 x 256 outputs by 2 x 4 warps, 4 stages
using Small = BlockTile<1, 4, 3>;  // 64 x 256: fewer rows that are not there, smaller partial sums
constexpr int kDepth = 32;         // steps of K in a stage

struct Plan {
  bool small;  // tiles
  Schedule schedule;
  double cycles;  // of arithmetic and of what it waits for

  // Scratch memory for the sums of those who share out the last round.
  size_t partials_bytes() const {
    const int outputs = small ? Small::kRows * Small::kCols : Large::kRows * Large::kCols;
    return size_t{2} * schedule.sharers * outputs * sizeof(float);
  }
};

// Measured on an H100. Sharing out the last round costs writing and reading the partial sums, about
// as long as 5 steps of K of a tile. Small tiles take 4% longer: more panels come from L2.
constexpr int kPartialsSteps = 5;
constexpr double kSmallTilesTake = 1.04;

template <class T>
constexpr double kStepCycles =
    (T::kTeams == 2 ? kSmallTilesTake : 1.0) * kDepth * T::kRows * T::kCols / kFmasPerCycle;

// Each piece of a tile ends in a store, during which nobody multiplies.
template <class T>
constexpr double kStoreCycles = T::kRows * T::kCols * 4 / kBytesPerCycle;

// How many blocks share out so many left-over tiles: all, which gives most blocks the end of one
// tile and the beginning of the next. Or two or three to a tile, if that takes no step more. Not
// four and more, though: 64x4096x4096, eight to a tile, took 3% longer than by uneven shares, whose
// blocks do not all read rows of B at multiples of one distance.
inline int sharers_of(int tiles, int steps, int processors) {
  const int64_t all = int64_t{tiles} * steps, most = std::min<int64_t>(processors, all);
  const int64_t even = int64_t{tiles} * std::min(processors / tiles, steps);
  const bool few = even / tiles == 2 || even / tiles == 3;
  return static_cast<int>(few && ceil_div(all, even) == ceil_div(all, most) ? even : most);
}

// Tile after tile, and the last round shared out if that saves more steps than it costs.
template <class T>
Plan in_rounds(const Problem& p, int processors) {
  Schedule s{};
  s.tiles_m = static_cast<int>(ceil_div(p.M, T::kRows));
  s.tiles_n = static_cast<int>(ceil_div(p.N, T::kCols));
  s.tiles = s.whole = static_cast<int>(p.batch * s.tiles_m * s.tiles_n);
  s.steps = static_cast<int>(ceil_div(p.K, kDepth));
  const int64_t rounds = ceil_div(s.tiles, processors);
  double steps = 1.0 * rounds * s.steps;
  const int left = s.tiles % processors;
  if (left > 0 && s.steps > 0) {
    const int sharers = sharers_of(left, s.steps, processors);
    const int64_t shared = ceil_div(int64_t{left} * s.steps, sharers) + kPartialsSteps;
    if (shared < s.steps) {
      s.whole -= left;
      s.sharers = sharers;
      steps += shared - s.steps;
    }
  }
  s.blocks = std::max(s.sharers, std::min(s.tiles, processors));
  return {T::kTeams == 2, s, steps * kStepCycles<T> + rounds * kStoreCycles<T>};
}

inline Plan plan_for(const Problem& p, int processors) {
  const Plan large = in_rounds<Large>(p, processors), small = in_rounds<Small>(p, processors);
  return small.cycles < large.cycles ? small : large;
}

inline bool fits(const Problem& p) {
  constexpr int64_t kMost = INT32_MAX - Large::kRows * Large::kCols;  // coordinates are 32-bit
  const int64_t tiles_m = ceil_div(p.M, Small::kRows), tiles_n = ceil_div(p.N, Small::kCols);
  return p.M < kMost && p.N < kMost && p.K < kMost && tiles_m <= kMost / tiles_n &&
         p.batch <= kMost / (tiles_m * tiles_n);
}
