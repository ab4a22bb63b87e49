// A streaming elementwise kernel, out = F(in...), with memory accesses of 16 or 8 bytes.
//
// Such a kernel is right when it is as fast as a copy: the memory sets the pace, and the arithmetic
// must hide behind it. What that takes: each warp's access is one contiguous stretch; each thread
// asks for 8 or 16 bytes of each input at once (16 are the most one instruction can), and for all
// of its elements before it uses the first, so that enough requests are under way to cover the
// memory's latency.
//
// A small tensor wants the opposite, many threads with little each, or most of the GPU is idle. And
// where there are several inputs, 8 bytes of each are as good as 16, and a little better.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../kinds.h"
#include "elements.cuh"

namespace custom_gelu::cuda {

constexpr int kPackBytes = 16;
// Up to here (1 MiB a tensor) a thread takes 8 bytes of a single input.
constexpr int64_t kSmall = 1 << 20;

// How a kernel takes its tensors apart: threads a block, packs a thread, elements a pack.
// kFlat: one row; else packs of several rows are numbered on, and none lies across two rows.
template <int kThreads_, int kPacks_, int kLanes_, bool kFlat_>
struct Shape {
  static constexpr int kThreads = kThreads_, kPacks = kPacks_, kLanes = kLanes_;
  static constexpr bool kFlat = kFlat_;
  // The launcher sees to it that 16-byte packs can be counted in 32 bits; 64-bit division is slow.
  using Index = std::conditional_t<kLanes_ == 1, int64_t, uint32_t>;
};

// The threads that a multiprocessor holds at most.
#if __CUDA_ARCH__ == 750
constexpr int kThreadsPerSM = 1024;
#elif __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1100
constexpr int kThreadsPerSM = 1536;
#else
constexpr int kThreadsPerSM = 2048;
#endif
// For how many of them registers are to suffice. With one pack each for all: the 32 that are left
// for each of 2048 do, but not for two results. Asking for 16 bytes each they have 32 KiB under
// way; an H100's memory needs some 18 (3.35 TB/s x 0.7 us of latency / 132 multiprocessors).
template <typename F, typename Shape>
constexpr int kThreadsAtOnce = Shape::kPacks > 1 || F::kOutputs > 1 ? 1024 : kThreadsPerSM;

// Where pack number `pack` begins in a tensor with this stride from row to row.
template <typename Shape>
struct Place {
  using Index = typename Shape::Index;
  int64_t row = 0, column;
  __device__ __forceinline__ Place(Index pack, Index packs_per_row) {
    if constexpr (!Shape::kFlat) row = pack / packs_per_row;
    column = int64_t(pack - Index(row) * packs_per_row) * Shape::kLanes;
  }
  __device__ __forceinline__ int64_t in(int64_t stride) const {
    return Shape::kFlat ? column : row * stride + column;
  }
};

template <typename F, typename Element, int kLanes>
__device__ __forceinline__ void compute(const Pack<Element, kLanes> (&in)[F::kInputs],
                                        Pack<Element, kLanes> (&out)[F::kOutputs]) {
#pragma unroll
  for (int lane = 0; lane < kLanes; ++lane) {
    typename F::Real arguments[F::kInputs], results[F::kOutputs];
#pragma unroll
    for (int k = 0; k < F::kInputs; ++k) arguments[k] = widened(in[k], lane);
    F::run(arguments, results);
#pragma unroll
    for (int k = 0; k < F::kOutputs; ++k) out[k].values[lane] = narrow<Element>(results[k]);
  }
}

template <typename F, typename Element, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, kThreadsAtOnce<F, Shape> / Shape::kThreads)
    elementwise_kernel(Operands operands, typename Shape::Index packs,
                       typename Shape::Index packs_per_row) {
  using Index = typename Shape::Index;
  using Place = Place<Shape>;
  constexpr int kLanes = Shape::kLanes, kPacks = Shape::kPacks, kThreads = Shape::kThreads;
  using Pack = Pack<Element, kLanes>;
  const Index first = Index(blockIdx.x) * (kThreads * kPacks) + threadIdx.x;

  Pack in[kPacks][F::kInputs];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const Index pack = first + p * kThreads;
    if (pack >= packs) break;
    const Place place(pack, packs_per_row);
#pragma unroll
    for (int k = 0; k < F::kInputs; ++k) {
      const auto* base = static_cast<const Element*>(operands.inputs[k]);
      in[p][k] = load<kLanes>(base + place.in(operands.input_strides[k]));
    }
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const Index pack = first + p * kThreads;
    if (pack >= packs) break;
    const Place place(pack, packs_per_row);
    Pack out[F::kOutputs];
    compute<F, Element>(in[p], out);
#pragma unroll
    for (int k = 0; k < F::kOutputs; ++k) {
      auto* base = static_cast<Element*>(operands.outputs[k]);
      store(base + place.in(operands.output_strides[k]), out[k]);
    }
  }

  if constexpr (Shape::kFlat && kLanes > 1) {  // what is left of the row, less than a pack
    const int64_t i = int64_t(packs) * kLanes + threadIdx.x;
    if (blockIdx.x != 0 || i >= operands.width) return;
    cuda::Pack<Element, 1> single[F::kInputs], result[F::kOutputs];
#pragma unroll
    for (int k = 0; k < F::kInputs; ++k) {
      single[k].values[0] = static_cast<const Element*>(operands.inputs[k])[i];
    }
    compute<F, Element>(single, result);
#pragma unroll
    for (int k = 0; k < F::kOutputs; ++k) {
      static_cast<Element*>(operands.outputs[k])[i] = result[k].values[0];
    }
  }
}

template <typename F, typename Element, typename Shape>
cudaError_t launch(const Operands& operands, cudaStream_t stream) {
  using Index = typename Shape::Index;
  const int64_t per_row = operands.width / Shape::kLanes, packs = operands.rows * per_row;
  constexpr int64_t kTile = Shape::kThreads * Shape::kPacks;
  const auto blocks = unsigned(packs > 0 ? (packs + kTile - 1) / kTile : 1);
  elementwise_kernel<F, Element, Shape>
      <<<blocks, Shape::kThreads, 0, stream>>>(operands, Index(packs), Index(per_row));
  return cudaGetLastError();
}

// Whether every row of every tensor begins on a multiple of 16 bytes.
inline bool aligned(const Operands& o, int inputs, int outputs, int lanes) {
  uintptr_t misaligned = 0;
  int64_t uneven = 0;
  for (int k = 0; k < inputs; ++k) {
    misaligned |= reinterpret_cast<uintptr_t>(o.inputs[k]);
    if (o.rows > 1) uneven |= o.input_strides[k];
  }
  for (int k = 0; k < outputs; ++k) {
    misaligned |= reinterpret_cast<uintptr_t>(o.outputs[k]);
    if (o.rows > 1) uneven |= o.output_strides[k];
  }
  return misaligned % kPackBytes == 0 && uneven % lanes == 0;
}

template <typename F, typename Element>
cudaError_t launch_elementwise(const Operands& operands, cudaStream_t stream) {
  constexpr int kLanes = kPackBytes / sizeof(Element);
  const int64_t count = operands.rows * operands.width;
  if (count == 0) return cudaSuccess;
  const bool countable = count / kLanes < (int64_t(1) << 31);
  const bool packed = countable && aligned(operands, F::kInputs, F::kOutputs, kLanes);
  if (!packed || (operands.rows > 1 && operands.width % kLanes != 0)) {
    return operands.rows > 1 ? launch<F, Element, Shape<256, 4, 1, false>>(operands, stream)
                             : launch<F, Element, Shape<256, 4, 1, true>>(operands, stream);
  }
  if (operands.rows > 1) return launch<F, Element, Shape<128, 1, kLanes, false>>(operands, stream);
  if constexpr (F::kInputs == 1) {
    if (count * int64_t(sizeof(Element)) > kSmall) {
      return launch<F, Element, Shape<128, 1, kLanes, true>>(operands, stream);
    }
  }
  return launch<F, Element, Shape<128, 1, kLanes / 2, true>>(operands, stream);
}

// One operation for all types and both modes.
template <template <typename, Mode> class Operation>
struct Launch {
  const Operands& operands;
  cudaStream_t stream;
  template <typename Element, typename Precision, Mode kMode>
  cudaError_t operator()() const {
    return launch_elementwise<Operation<Precision, kMode>, Element>(operands, stream);
  }
};

}  // namespace custom_gelu::cuda
