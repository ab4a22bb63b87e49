// GELU of x + bias: forward, and a backward that also sums the bias's gradient in the same pass.
//
// A thread owns one pack of columns, so that it reads its part of the bias once, and walks down the
// rows. The bias's gradient is the sum of x's gradient over all rows, and that passes through the
// registers anyway: the thread sums as it goes, the sums of a block's threads meet in shared
// memory, those of the blocks in a small array that a second kernel adds up. Always in the same
// order: no atomics, so that the same input gives the same bits, on any GPU.
#include <algorithm>

#include "../operations.h"
#include "elementwise.cuh"
#include "launchers.h"

namespace custom_gelu::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsAhead = 2;    // rows that a thread asks for before it uses the first
constexpr int kBlocksPerSM = 3;  // leaves a thread 80 registers; with 64 the sums spill
// Blocks to divide the work into: two waves on an H100, whose 132 multiprocessors are more than
// most GPUs have. Not asked of the GPU at hand, so that the order of sums depends on shapes alone.
constexpr int64_t kBlocks = 2 * kBlocksPerSM * 132;

int64_t up(int64_t n, int64_t divisor) {
  return (n + divisor - 1) / divisor;
}

// A block is `across` threads along the columns times `down` along the rows; `chunks` such blocks
// share the rows of one strip of columns.
struct Division {
  int across = 1, down;
  int64_t strips, chunks;

  Division(int64_t packs_per_row) {
    while (across < 32 && across < packs_per_row) across *= 2;
    down = kThreads / across;
    strips = std::max<int64_t>(1, up(packs_per_row, across));
  }
  unsigned blocks() const { return unsigned(strips * chunks); }
  dim3 threads() const { return dim3(across, down); }
};

Division divide_backward(int64_t rows, int64_t packs_per_row) {
  Division d(packs_per_row);
  const int64_t most = up(rows, d.down * kRowsAhead);
  d.chunks = std::max<int64_t>(1, std::min(kBlocks / d.strips, most));
  return d;
}

// Element (row, column) of a tensor with this stride, as the pack that begins there.
template <typename Pack, typename Element>
__device__ __forceinline__ Pack* at(Element* base, int64_t stride, int64_t row, int64_t column) {
  return reinterpret_cast<Pack*>(base + row * stride + column);
}

// Each thread takes kRows rows of one pack.
template <typename Precision, Mode kMode, typename Element, int kLanes, int kRows>
__global__ void __launch_bounds__(kThreads, kThreadsPerSM / kThreads)
    bias_gelu_kernel(Operands o, int64_t strips) {
  using Pack = Pack<Element, kLanes>;
  const int64_t strip = blockIdx.x % strips, chunk = blockIdx.x / strips;
  const int64_t column = (strip * blockDim.x + threadIdx.x) * kLanes;
  const int64_t top = chunk * blockDim.y * kRows + threadIdx.y;
  if (column >= o.width) return;
  const auto* x = static_cast<const Element*>(o.inputs[0]);
  Pack in[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = top + r * blockDim.y;
    if (row < o.rows) in[r] = *at<const Pack>(x, o.input_strides[0], row, column);
  }
  const Pack bias = *at<const Pack>(static_cast<const Element*>(o.inputs[1]), 0, 0, column);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = top + r * blockDim.y;
    if (row >= o.rows) break;
    Pack pair[2] = {in[r], bias}, out[1];
    compute<BiasGelu<Precision, kMode>, Element>(pair, out);
    *at<Pack>(static_cast<Element*>(o.outputs[0]), o.output_strides[0], row, column) = out[0];
  }
}

template <typename Precision, Mode kMode, typename Element, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    bias_gelu_backward_kernel(Operands o, typename Precision::Real* partial, int64_t strips,
                              int64_t chunks) {
  using Real = typename Precision::Real;
  using Pack = Pack<Element, kLanes>;
  const int64_t strip = blockIdx.x % strips, chunk = blockIdx.x / strips;
  const int64_t column = (strip * blockDim.x + threadIdx.x) * kLanes;
  Real sums[kLanes] = {};

  if (column < o.width) {
    const auto* grads = static_cast<const Element*>(o.inputs[0]);
    const auto* xs = static_cast<const Element*>(o.inputs[1]);
    const Pack bias = *at<const Pack>(static_cast<const Element*>(o.inputs[2]), 0, 0, column);
    const int64_t step = chunks * blockDim.y;
    for (int64_t top = chunk * blockDim.y + threadIdx.y; top < o.rows; top += step * kRowsAhead) {
      Pack grad[kRowsAhead], x[kRowsAhead];
#pragma unroll
      for (int r = 0; r < kRowsAhead; ++r) {
        const int64_t row = top + r * step;
        if (row >= o.rows) break;
        grad[r] = *at<const Pack>(grads, o.input_strides[0], row, column);
        x[r] = *at<const Pack>(xs, o.input_strides[1], row, column);
      }
#pragma unroll
      for (int r = 0; r < kRowsAhead; ++r) {
        const int64_t row = top + r * step;
        if (row >= o.rows) break;
        Pack result;
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          const Real y = widen(x[r].values[lane]) + widen(bias.values[lane]);
          const Real dx = widen(grad[r].values[lane]) * gelu_derivative<Precision, kMode>(y);
          sums[lane] += dx;
          result.values[lane] = narrow<Element>(dx);
        }
        *at<Pack>(static_cast<Element*>(o.outputs[0]), o.output_strides[0], row, column) = result;
      }
    }
  }

  __shared__ Real shared[kThreads * kLanes];
  const int across = blockDim.x * kLanes, thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int lane = 0; lane < kLanes; ++lane) {
    shared[threadIdx.y * across + threadIdx.x * kLanes + lane] = sums[lane];
  }
  __syncthreads();
  for (int i = thread; i < across; i += kThreads) {
    Real sum = 0;
    for (int y = 0; y < int(blockDim.y); ++y) sum += shared[y * across + i];
    const int64_t c = strip * across + i;
    if (c < o.width) partial[chunk * o.width + c] = sum;
  }
}

// 32 columns by 8 threads, each of which adds up every 8th row.
template <typename Real, typename Element>
__global__ void sum_rows_kernel(const Real* partial, int64_t rows, int64_t width, Element* out) {
  __shared__ Real shared[8][32];
  const int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x;
  Real sum = 0;
  if (column < width) {
    for (int64_t r = threadIdx.y; r < rows; r += 8) sum += partial[r * width + column];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= width) return;
#pragma unroll
  for (int y = 1; y < 8; ++y) sum += shared[y][threadIdx.x];
  out[column] = narrow<Element>(sum);
}

template <typename Element>
int lanes_of(const Operands& o, int inputs, int outputs) {
  constexpr int kLanes = kPackBytes / sizeof(Element);
  return aligned(o, inputs, outputs, kLanes) && o.width % kLanes == 0 ? kLanes : 1;
}

struct LaunchForward {
  const Operands& o;
  cudaStream_t stream;

  template <typename Element, typename Precision, Mode kMode>
  cudaError_t operator()() const {
    if (o.rows * o.width == 0) return cudaSuccess;
    constexpr int kLanes = kPackBytes / sizeof(Element);
    return lanes_of<Element>(o, 2, 1) == kLanes ? run<Element, Precision, kMode, kLanes>()
                                                : run<Element, Precision, kMode, 1>();
  }

  template <typename Element, typename Precision, Mode kMode, int kLanes>
  cudaError_t run() const {
    constexpr int kMany = 4;
    Division d(o.width / kLanes);
    d.chunks = up(o.rows, d.down * kMany);
    if (d.strips * d.chunks >= kBlocks) {
      bias_gelu_kernel<Precision, kMode, Element, kLanes, kMany>
          <<<d.blocks(), d.threads(), 0, stream>>>(o, d.strips);
    } else {  // a small tensor: rather more threads than more work for each
      d.chunks = up(o.rows, d.down);
      bias_gelu_kernel<Precision, kMode, Element, kLanes, 1>
          <<<d.blocks(), d.threads(), 0, stream>>>(o, d.strips);
    }
    return cudaGetLastError();
  }
};

struct CountPartialRows {
  const Operands& o;
  template <typename Element, typename Precision, Mode kMode>
  int64_t operator()() const {
    return divide_backward(o.rows, o.width / lanes_of<Element>(o, 3, 2)).chunks;
  }
};

struct LaunchBackward {
  const Operands& o;
  void* partial;
  cudaStream_t stream;

  template <typename Element, typename Precision, Mode kMode>
  cudaError_t operator()() const {
    if (o.width == 0) return cudaSuccess;
    constexpr int kLanes = kPackBytes / sizeof(Element);
    return lanes_of<Element>(o, 3, 2) == kLanes ? run<Element, Precision, kMode, kLanes>()
                                                : run<Element, Precision, kMode, 1>();
  }

  template <typename Element, typename Precision, Mode kMode, int kLanes>
  cudaError_t run() const {
    using Real = typename Precision::Real;
    const Division d = divide_backward(o.rows, o.width / kLanes);
    auto* sums = static_cast<Real*>(partial);
    bias_gelu_backward_kernel<Precision, kMode, Element, kLanes>
        <<<d.blocks(), d.threads(), 0, stream>>>(o, sums, d.strips, d.chunks);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    sum_rows_kernel<<<unsigned(up(o.width, 32)), dim3(32, 8), 0, stream>>>(
        sums, d.chunks, o.width, static_cast<Element*>(o.outputs[1]));
    return cudaGetLastError();
  }
};

}  // namespace

cudaError_t bias_gelu(const Operands& operands, cudaStream_t stream) {
  return dispatch<Elements>(operands.type, operands.mode, LaunchForward{operands, stream});
}

int64_t partial_rows(const Operands& operands) {
  return dispatch<Elements>(operands.type, operands.mode, CountPartialRows{operands});
}

cudaError_t bias_gelu_backward(const Operands& operands, void* partial, cudaStream_t stream) {
  return dispatch<Elements>(operands.type, operands.mode,
                            LaunchBackward{operands, partial, stream});
}

}  // namespace custom_gelu::cuda
