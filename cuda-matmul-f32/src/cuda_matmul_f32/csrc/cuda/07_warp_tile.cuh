// CUDA 7: a warp's threads sit in a tile of their own, 4 down and 8 across, and multiply in the
// order that the register file likes.
//
// Removes: repeated reads of shared memory within a warp. Per step of k a warp needs 4 vectors of A
//   and 8 of B, twice: 64 and 128 bytes, each one turn of shared memory's 128 bytes. Laid out 2 x
//   16 as before, it took six turns instead of four. And FFMAs that wait for a register bank: along
//   a row of its tile and back along the next, a thread uses each operand twice in succession
//   (outer_product.cuh).
// Leaves: everybody waits while a panel is loaded, and then nobody loads.
#pragma once

#include <type_traits>

#include "cuda/outer_product.cuh"
#include "cuda/panel_load.cuh"

constexpr Tile kWarpTile{kLines, kLines, kPanelThreads};  // 4 x 2 warps of 32 x 64 outputs

template <class LoaderA, class LoaderB>
__global__ void __launch_bounds__(kWarpTile.threads, 2)
    warp_tile_kernel(const Problem problem, float alpha) {
  using Warp = WarpTile<8, 8>;
  __shared__ __align__(16) Panel a;
  __shared__ __align__(16) Panel b;
  const Origin tile = tile_origin<kWarpTile.rows, kWarpTile.cols>(problem);
  const Problem p = problem.at(tile.product);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / 2 * Warp::kHeight, warp_col = warp % 2 * Warp::kWidth;

  float sum[8][8] = {};
  LoaderA load_a(&p.a(tile.row, 0), p.a.row_stride, p.a.col_stride, p.M - tile.row);
  LoaderB load_b(&p.b(0, tile.col), p.b.col_stride, p.b.row_stride, p.N - tile.col);
  for (int64_t k0 = 0; k0 < p.K; k0 += kPanelStep) {
    const int depth = static_cast<int>(p.K - k0 < kPanelStep ? p.K - k0 : kPanelStep);
    load_a.load(a, depth);
    load_b.load(b, depth);
    __syncthreads();  // the panels are complete
#pragma unroll
    for (int k = 0; k < kPanelStep; ++k) {
      float a_column[8], b_row[8];
      Warp::load(&a[k][warp_row], &b[k][warp_col], lane, a_column, b_row);
      outer_product(sum, a_column, b_row);
    }
    __syncthreads();  // all have read before the next panels overwrite these
  }
  const int64_t row = tile.row + warp_row, col = tile.col + warp_col;
  Warp::store(sum, alpha, p.c + row * p.c_stride + col, p.c_stride, p.M - row, p.N - col, lane);
}

inline cudaError_t launch_warp_tile(const Problem& p, void*, cudaStream_t stream) {
  return with_loaders(p, [&](auto* a, auto* b) {
    const auto kernel =
        warp_tile_kernel<std::remove_pointer_t<decltype(a)>, std::remove_pointer_t<decltype(b)>>;
    return launch_tiles(kernel, kWarpTile, p, stream, 1.0f);
  });
}
