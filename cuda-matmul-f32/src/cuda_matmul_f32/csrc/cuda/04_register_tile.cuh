// CUDA 4: each thread computes an 8 x 8 tile of outputs in registers; a block, 128 x 128.
//
// Removes: the load or more per multiply-add from shared memory. Per step of k a thread reads 8
//   values of A and 8 of B, as 4 vectors of four, and does 64 FMAs with them: 4 loads instead
//   of 80. A block of 128 x 128 also fetches a quarter as much from L2 as the 16 blocks of 32 x 32
//   did.
// Leaves: global loads of 4 bytes a thread, each with its own address and edge test; loading and
//   computing take turns, since the loads of the next tile start after the barrier; 64
//   sums and their operands take so many registers that two blocks fit on an SM, so 16 warps hide
//   latency; and a C smaller than a tile per SM leaves the other SMs idle.
#pragma once

#include "cuda/launch.cuh"

constexpr int kLines = 128;                         // rows of A, columns of B that a block loads
constexpr int kRegisterStep = 16;                   // steps of K between two barriers
constexpr Tile kRegisterTile{kLines, kLines, 256};  // 16 x 16 threads
constexpr int kOutputs = kLines / 16;               // of each thread, in each direction
constexpr int kPanelStride = kLines + 4;            // rows on 16 bytes, and off one single bank
using Panel = float[kRegisterStep][kPanelStride];   // [k][line]

// Copies panels of A (lines are its rows) or of B (its columns) into shared memory, with zeros past
// the matrix's edge. Neighbouring threads read along whichever direction is contiguous in memory.
// A thread's values lie one fixed step apart, so it keeps one pointer instead of eight: with eight
// for each matrix the sums no longer fit in registers.
class PanelLoader {
 public:
  __device__ PanelLoader(const float* first, int64_t line_stride, int64_t k_stride, int64_t lines)
      : lines_(static_cast<int>(lines < kLines ? lines : kLines)) {
    const bool along_k = k_stride < line_stride;
    const int thread = threadIdx.x;
    line_ = along_k ? thread / kRegisterStep : thread % kLines;
    k_ = along_k ? thread % kRegisterStep : thread / kLines;
    line_step_ = along_k ? kRegisterTile.threads / kRegisterStep : 0;
    k_step_ = along_k ? 0 : kRegisterTile.threads / kLines;
    from_ = first + line_ * line_stride + k_ * k_stride;
    step_ = line_step_ * line_stride + k_step_ * k_stride;
    advance_ = kRegisterStep * k_stride;
  }

  // Loads the next panel along K; `depth` steps of K are left.
  __device__ void load(Panel& to, int depth) {
    const float* from = from_;
    int line = line_, k = k_;
#pragma unroll
    for (int i = 0; i < kLines * kRegisterStep / kRegisterTile.threads; ++i) {
      to[k][line] = line < lines_ && k < depth ? *from : 0.0f;
      line += line_step_;
      k += k_step_;
      from += step_;
    }
    from_ += advance_;
  }

 private:
  const float* from_;
  int64_t step_, advance_;
  int line_, k_, line_step_, k_step_, lines_;
};

// The i-th of a thread's eight lines. They are two groups of four, half a panel apart, so that
// threads beside each other read adjacent vectors; with eight in a row, threads four apart would
// hit the same banks.
__device__ __forceinline__ int line_of(int thread, int i) {
  return thread * 4 + i / 4 * (kLines / 2) + i % 4;
}

__global__ void __launch_bounds__(kRegisterTile.threads, 2)
    register_tile_kernel(const Problem problem) {
  __shared__ __align__(16) Panel a;
  __shared__ __align__(16) Panel b;
  const Origin tile = tile_origin<kRegisterTile.rows, kRegisterTile.cols>(problem);
  const Problem p = problem.at(tile.product);
  const int thread_row = threadIdx.x / 16;
  const int thread_col = threadIdx.x % 16;

  float sum[kOutputs][kOutputs] = {};
  PanelLoader load_a(&p.a(tile.row, 0), p.a.row_stride, p.a.col_stride, p.M - tile.row);
  PanelLoader load_b(&p.b(0, tile.col), p.b.col_stride, p.b.row_stride, p.N - tile.col);
  for (int64_t k0 = 0; k0 < p.K; k0 += kRegisterStep) {
    const int depth = static_cast<int>(p.K - k0 < kRegisterStep ? p.K - k0 : kRegisterStep);
    load_a.load(a, depth);
    load_b.load(b, depth);
    __syncthreads();  // the panels are complete
#pragma unroll
    for (int k = 0; k < kRegisterStep; ++k) {
      float a_column[kOutputs], b_row[kOutputs];
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        a_column[i] = a[k][line_of(thread_row, i)];
        b_row[i] = b[k][line_of(thread_col, i)];
      }
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
#pragma unroll
        for (int j = 0; j < kOutputs; ++j) sum[i][j] += a_column[i] * b_row[j];
      }
    }
    __syncthreads();  // all have read before the next panels overwrite these
  }

#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int64_t row = tile.row + line_of(thread_row, i);
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      const int64_t col = tile.col + line_of(thread_col, j);
      if (row < p.M && col < p.N) p.c[row * p.c_stride + col] = sum[i][j];
    }
  }
}

inline cudaError_t launch_register_tile(const Problem& p, void*, cudaStream_t stream) {
  return launch_tiles(register_tile_kernel, kRegisterTile, p, stream);
}
