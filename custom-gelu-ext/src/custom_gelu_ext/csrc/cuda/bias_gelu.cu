// GELU of x + bias: forward, and a backward that also sums the bias's gradient in the same pass.
//
// A thread owns one pack of columns, so that it reads its part of the bias once, and walks down the
// rows. The bias's gradient is the sum of x's gradient over all rows, and that passes through the
// registers anyway: the thread sums as it goes, the sums of a block's threads meet in shared
// memory, those of the blocks in a small array that a second kernel adds up. Always in the same
// order: no atomics, so that the same input, at addresses as well aligned, gives the same bits, on
// any GPU.
#include <algorithm>

#include "../operations.h"
#include "elementwise.cuh"
#include "launchers.h"

namespace custom_gelu::cuda {
namespace {

constexpr int kThreads = 256;
// Leaves a thread 64 registers in forward; 80 in backward, where with 64 the sums spill.
constexpr int kForwardBlocksPerSM = 4, kBackwardBlocksPerSM = 3;
// Rows that a thread of backward asks for before it uses the first; with two, doubles spill.
template <typename Element>
constexpr int kRowsAhead = sizeof(Element) == 8 ? 1 : 2;
// Blocks to divide the work into: four waves on an H100, whose 132 multiprocessors are more than
// most GPUs have. Not asked of the GPU at hand, so that the order of sums depends on shapes and
// alignment alone.
constexpr int64_t kBlocks = 4 * kBackwardBlocksPerSM * 132;

int64_t up(int64_t n, int64_t divisor) {
  return (n + divisor - 1) / divisor;
}

// A block is `across` threads along the columns times `down` along the rows, of which it takes
// `span`; `chunks` such blocks share the rows of one strip of columns.
struct Division {
  int across = 1, down;
  int64_t strips, chunks, span;

  Division(int64_t rows, int64_t packs_per_row, int64_t rows_per_thread) {
    while (across < 32 && across < packs_per_row) across *= 2;
    down = kThreads / across;
    span = down * rows_per_thread;
    strips = std::max<int64_t>(1, up(packs_per_row, across));
    chunks = std::max<int64_t>(1, up(rows, span));
  }
  unsigned blocks() const { return unsigned(strips * chunks); }
  dim3 threads() const { return dim3(across, down); }
};

Division divide_backward(int64_t rows, int64_t packs_per_row) {
  const Division finest(rows, packs_per_row, 1);
  const int64_t chunks = std::max<int64_t>(1, kBlocks / finest.strips);
  return Division(rows, packs_per_row, std::max<int64_t>(2, up(finest.chunks, chunks)));
}

// Each thread takes kRows rows of one pack.
template <typename Precision, Mode kMode, typename Element, int kLanes, int kRows>
__global__ void __launch_bounds__(kThreads, kForwardBlocksPerSM)
    bias_gelu_kernel(Operands o, unsigned strips) {
  using Pack = Pack<Element, kLanes>;
  const unsigned strip = blockIdx.x % strips, chunk = blockIdx.x / strips;
  const int64_t column = (int64_t(strip) * blockDim.x + threadIdx.x) * kLanes;
  const int64_t top = int64_t(chunk) * blockDim.y * kRows + threadIdx.y;
  if (column >= o.width) return;
  const int64_t x_stride = o.input_strides[0], out_stride = o.output_strides[0];
  const Element* x = static_cast<const Element*>(o.inputs[0]) + top * x_stride + column;
  const Element* bias = static_cast<const Element*>(o.inputs[1]) + column;
  Element* out = static_cast<Element*>(o.outputs[0]) + top * out_stride + column;
  Pack in[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (top + r * blockDim.y < o.rows) in[r] = load<kLanes>(x + r * blockDim.y * x_stride);
  }
  const Pack biases = load<kLanes>(bias);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (top + r * blockDim.y >= o.rows) break;
    Pack pair[2] = {in[r], biases}, result[1];
    compute<BiasGelu<Precision, kMode>, Element>(pair, result);
    store(out + r * blockDim.y * out_stride, result[0]);
  }
}

// A block takes `span` rows.
template <typename Precision, Mode kMode, typename Element, int kLanes>
__global__ void __launch_bounds__(kThreads, kBackwardBlocksPerSM)
    bias_gelu_backward_kernel(Operands o, typename Precision::Real* partial, unsigned strips,
                              unsigned span) {
  using Real = typename Precision::Real;
  using Pack = Pack<Element, kLanes>;
  constexpr int kAhead = kRowsAhead<Element>;
  const unsigned strip = blockIdx.x % strips, chunk = blockIdx.x / strips;
  const int64_t column = (int64_t(strip) * blockDim.x + threadIdx.x) * kLanes;
  Real sums[kLanes] = {};

  if (column < o.width) {
    const int64_t top = int64_t(chunk) * span + threadIdx.y;
    const int64_t end = min(o.rows, (int64_t(chunk) + 1) * span);
    const Element* grad = static_cast<const Element*>(o.inputs[0]);
    const Element* x = static_cast<const Element*>(o.inputs[1]);
    Element* out = static_cast<Element*>(o.outputs[0]);
    grad += top * o.input_strides[0] + column;
    x += top * o.input_strides[1] + column;
    out += top * o.output_strides[0] + column;
    // From a row of this thread to its next. The pointers are moved on by these: to multiply for
    // each address would cost as much as the GELU.
    const int64_t grad_step = blockDim.y * o.input_strides[0];
    const int64_t x_step = blockDim.y * o.input_strides[1];
    const int64_t out_step = blockDim.y * o.output_strides[0];
    const Pack biases = load<kLanes>(static_cast<const Element*>(o.inputs[2]) + column);

    for (int64_t row = top; row < end; row += kAhead * blockDim.y) {
      Pack grads[kAhead], xs[kAhead];
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        if (row + r * blockDim.y >= end) break;
        grads[r] = load<kLanes>(grad + r * grad_step);
        xs[r] = load<kLanes>(x + r * x_step);
      }
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        if (row + r * blockDim.y >= end) break;
        Pack result;
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          const Real y = widened(xs[r], lane) + widened(biases, lane);
          const Real dx = widened(grads[r], lane) * gelu_derivative<Precision, kMode>(y);
          sums[lane] += dx;
          result.values[lane] = narrow<Element>(dx);
        }
        store(out + r * out_step, result);
      }
      grad += kAhead * grad_step;
      x += kAhead * x_step;
      out += kAhead * out_step;
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
    const int64_t c = int64_t(strip) * across + i;
    if (c < o.width) partial[chunk * o.width + c] = sum;
  }
}

// 32 columns by 32 threads, each of which adds up every 32nd row.
template <typename Real, typename Element>
__global__ void sum_rows_kernel(const Real* partial, int64_t rows, int64_t width, Element* out) {
  __shared__ Real shared[32][32];
  const int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x;
  Real sum = 0;
  if (column < width) {
    for (int64_t r = threadIdx.y; r < rows; r += 32) sum += partial[r * width + column];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= width) return;
#pragma unroll
  for (int y = 1; y < 32; ++y) sum += shared[y][threadIdx.x];
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
    const Division many(o.rows, o.width / kLanes, kMany);
    if (many.strips * many.chunks >= kBlocks) {
      bias_gelu_kernel<Precision, kMode, Element, kLanes, kMany>
          <<<many.blocks(), many.threads(), 0, stream>>>(o, unsigned(many.strips));
    } else {  // a small tensor: rather more threads than more work for each
      const Division one(o.rows, o.width / kLanes, 1);
      bias_gelu_kernel<Precision, kMode, Element, kLanes, 1>
          <<<one.blocks(), one.threads(), 0, stream>>>(o, unsigned(one.strips));
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
        <<<d.blocks(), d.threads(), 0, stream>>>(o, sums, unsigned(d.strips), unsigned(d.span));
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    sum_rows_kernel<<<unsigned(up(o.width, 32)), dim3(32, 32), 0, stream>>>(
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
