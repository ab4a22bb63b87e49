// How rung 9's blocks share out the work: whole tiles of C in turn, and what is left over at the
// end cut along K into equal parts, one for each block.
//
// With one block on each of 132 multiprocessors, 162 tiles would take as long as 264: in the second
// round most have nothing to do. So the last, incomplete round's tiles are laid end to end, as one
// line of steps of K, and each block takes an equal share of that line. A share that ends inside a
// tile gives partial sums, which go to scratch memory and are added up, in order, by a second
// kernel. Nothing waits for another block and nothing is added in an order that depends on timing,
// so the result has the same bits on each run. Source of the idea: Osama et al. 2023, "Stream-K:
// work-centric parallel decomposition for dense matrix-matrix multiplication on the GPU".
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.cuh"
#include "problem.h"

struct Schedule {
  int tiles_m, tiles_n;
  int tiles;    // of all products of the batch
  int whole;    // the first so many are computed whole, the others in equal shares of their steps
  int steps;    // of K, in a tile
  int blocks;   // in the grid
  int sharers;  // the first so many of them share the left-over steps, each with at least one

  // The share of block i of the left-over steps starts here; that of the last sharer ends at
  // share(sharers).
  HOST_DEVICE int64_t share(int i) const {
    const int64_t all = (tiles - whole) * static_cast<int64_t>(steps);
    return i < sharers ? all * i / sharers : all;
  }
  // Which block's share holds this left-over step.
  HOST_DEVICE int owner(int64_t step) const {
    const int64_t all = (tiles - whole) * static_cast<int64_t>(steps);
    return static_cast<int>(((step + 1) * sharers - 1) / all);
  }
};

// One piece of work of a block: steps [first, last) of a tile. If that is not all of its steps, the
// sums go to a slot of scratch memory, tile after tile.
struct Work {
  int tile;
  int first, last;
  int slot;  // or -1: all of K, so the sums are C
};

// A block's pieces of work in order. Its share touches at most two tiles that it does not compute
// whole: the one it starts in (slot 2 x block) and the one it ends in (slot 2 x block + 1).
class WorkList {
 public:
  __device__ explicit WorkList(const Schedule& schedule)
      : s_(schedule),
        tile_(blockIdx.x),
        step_(schedule.share(blockIdx.x)),
        end_(schedule.share(blockIdx.x + 1)) {}

  __device__ bool next(Work& work) {
    if (tile_ < s_.whole) {
      work = {tile_, 0, s_.steps, -1};
      tile_ += gridDim.x;
      return true;
    }
    if (step_ == end_) return false;
    const int64_t tile = step_ / s_.steps;
    const int64_t tile_start = tile * s_.steps;
    const int64_t stop = min(end_, tile_start + s_.steps);
    work.tile = s_.whole + static_cast<int>(tile);
    work.first = static_cast<int>(step_ - tile_start);
    work.last = static_cast<int>(stop - tile_start);
    const bool starts = work.first == 0, ends = work.last == s_.steps;
    work.slot = starts && ends ? -1 : 2 * static_cast<int>(blockIdx.x) + (starts ? 1 : 0);
    step_ = stop;
    return true;
  }

 private:
  const Schedule& s_;
  int tile_;
  int64_t step_, end_;
};

// Tiles in an order in which those computed at the same time need few different rows of A and
// columns of B, so that these stay in L2: down a group of 16 tile rows, then to the next column.
template <int kRows, int kCols>
__device__ __forceinline__ Origin origin_of(const Schedule& s, int tile) {
  constexpr int kGroup = 16;
  const int plane = s.tiles_m * s.tiles_n;
  const int in_plane = tile % plane;
  const int group = in_plane / (kGroup * s.tiles_n);
  const int in_group = in_plane % (kGroup * s.tiles_n);
  const int rows = min(kGroup, s.tiles_m - group * kGroup);
  return {tile / plane, int64_t{group * kGroup + in_group % rows} * kRows,
          int64_t{in_group / rows} * kCols};
}

// Adds up the partial sums of the left-over tiles that no block computed whole, and writes C. Each
// block of 256 threads takes 1024 outputs of one tile.
template <int kRows, int kCols>
__global__ void __launch_bounds__(256)
    add_partials_kernel(const Problem p, const Schedule s, const float* partials) {
  wait_for_previous_kernel();
  constexpr int kParts = kRows * kCols / 1024;
  const int left_over = blockIdx.x / kParts;
  const int64_t start = static_cast<int64_t>(left_over) * s.steps;
  const int first = s.owner(start), last = s.owner(start + s.steps - 1);
  if (first == last) return;  // that block has all of the tile, and wrote C

  // The first block's share ends in the tile (slot 2 x block + 1), the others' begin in it.
  const int at = blockIdx.x % kParts * 1024 + threadIdx.x * 4;
  const auto part = [&](int slot) {
    return *reinterpret_cast<const float4*>(partials + int64_t{slot} * kRows * kCols + at);
  };
  float4 sum = part(2 * first + 1);
#pragma unroll 8
  for (int block = first + 1; block <= last; ++block) {
    const float4 more = part(2 * block);
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
  }
  let_next_kernel_launch();
  const Origin tile = origin_of<kRows, kCols>(s, s.whole + left_over);
  const int64_t row = tile.row + at / kCols, col = tile.col + at % kCols;
  if (row >= p.M) return;
  float* c = p.c + tile.product * p.c_batch_stride + row * p.c_stride + col;
  const float out[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (col + j < p.N) c[j] = out[j];
  }
}
