// A streaming elementwise kernel: out[i] = f(inputs[0][i], ...), with 16-byte memory accesses.
//
// Such a kernel is right when it is as fast as a copy: the memory sets the pace, and the arithmetic
// must hide behind it. What that takes: each warp's access is one contiguous stretch; each thread
// asks for 16 bytes at once (the most one instruction can), and for all of its elements before it
// uses the first, so that enough requests are under way to cover the memory's latency.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace custom_gelu::cuda {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;
constexpr int kVectorsPerThread = 2;  // 16-byte requests under way per thread and input
// Leaves a thread 64 registers; left alone, the compiler saves down to 32 and spills. Enough
// blocks: 4 x 256 threads x 32 bytes under way are above the 18 KiB per SM that an H100's memory
// needs (3.35 TB/s x some 0.7 us of latency / 132 SMs).
constexpr int kBlocksPerSM = 4;

// The type the arithmetic is done in, and the way there and back.
template <typename Element>
struct Numeric {
  using Real = Element;
  static __device__ __forceinline__ Real widen(Element x) { return x; }
  static __device__ __forceinline__ Element narrow(Real x) { return x; }
};
template <>
struct Numeric<__half> {
  using Real = float;
  static __device__ __forceinline__ float widen(__half x) { return __half2float(x); }
  static __device__ __forceinline__ __half narrow(float x) { return __float2half_rn(x); }
};
template <>
struct Numeric<__nv_bfloat16> {
  using Real = float;
  static __device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }
};

template <typename Element, int kCount>
struct alignas(sizeof(Element) * kCount) Vector {
  Element values[kCount];
};

template <typename Element, int kInputs>
struct Inputs {
  const Element* pointers[kInputs];
};

template <typename F, typename Element, int kInputs>
__device__ __forceinline__ Element apply(const Element (&elements)[kInputs]) {
  using N = Numeric<Element>;
  if constexpr (kInputs == 1) {
    return N::narrow(F::run(N::widen(elements[0])));
  } else {
    return N::narrow(F::run(N::widen(elements[0]), N::widen(elements[1])));
  }
}

// A block takes tiles of kThreads * kVectorsPerThread * kLanes elements; a tile that the end cuts
// short is done one element at a time. kLanes = 1 is the kernel for unaligned pointers.
template <typename F, typename Element, int kInputs, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    elementwise_kernel(Inputs<Element, kInputs> inputs, Element* out, int64_t n) {
  using Pack = Vector<Element, kLanes>;
  constexpr int kTile = kThreads * kVectorsPerThread * kLanes;
  const int64_t stride = int64_t(gridDim.x) * kTile;
  for (int64_t start = int64_t(blockIdx.x) * kTile; start < n; start += stride) {
    if (n - start >= kTile) {
      Pack packs[kInputs][kVectorsPerThread];
#pragma unroll
      for (int v = 0; v < kVectorsPerThread; ++v) {
#pragma unroll
        for (int k = 0; k < kInputs; ++k) {
          const auto* pack = reinterpret_cast<const Pack*>(inputs.pointers[k] + start);
          packs[k][v] = pack[v * kThreads + threadIdx.x];
        }
      }
#pragma unroll
      for (int v = 0; v < kVectorsPerThread; ++v) {
        Pack result;
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          Element elements[kInputs];
#pragma unroll
          for (int k = 0; k < kInputs; ++k) elements[k] = packs[k][v].values[lane];
          result.values[lane] = apply<F, Element, kInputs>(elements);
        }
        reinterpret_cast<Pack*>(out + start)[v * kThreads + threadIdx.x] = result;
      }
    } else {
      for (int64_t i = start + threadIdx.x; i < n; i += kThreads) {
        Element elements[kInputs];
#pragma unroll
        for (int k = 0; k < kInputs; ++k) elements[k] = inputs.pointers[k][i];
        out[i] = apply<F, Element, kInputs>(elements);
      }
    }
  }
}

template <typename F, typename Element, int kInputs>
cudaError_t launch_elementwise(Inputs<Element, kInputs> inputs, Element* out, int64_t n,
                               cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  constexpr int kLanes = kVectorBytes / sizeof(Element);
  auto misaligned = reinterpret_cast<uintptr_t>(out);
  for (const Element* pointer : inputs.pointers) misaligned |= reinterpret_cast<uintptr_t>(pointer);
  const bool aligned = misaligned % kVectorBytes == 0;

  const int64_t tile = kThreads * kVectorsPerThread * (aligned ? kLanes : 1);
  constexpr int64_t kMostBlocks = 2147483647;  // the limit of gridDim.x; more tiles: more turns
  const int64_t tiles = (n + tile - 1) / tile;
  const auto blocks = unsigned(tiles < kMostBlocks ? tiles : kMostBlocks);
  if (aligned) {
    elementwise_kernel<F, Element, kInputs, kLanes>
        <<<blocks, kThreads, 0, stream>>>(inputs, out, n);
  } else {
    elementwise_kernel<F, Element, kInputs, 1><<<blocks, kThreads, 0, stream>>>(inputs, out, n);
  }
  return cudaGetLastError();
}

}  // namespace custom_gelu::cuda
