// The GPU's element types: the one that arithmetic is done in, and the way there and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace custom_gelu::cuda {

struct Elements {
  using Float32 = float;
  using Float64 = double;
  using Float16 = __half;
  using BFloat16 = __nv_bfloat16;
};

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ double widen(double x) {
  return x;
}
__device__ __forceinline__ float widen(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename Element>
__device__ __forceinline__ Element narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <typename Element>
__device__ __forceinline__ double narrow(double x) {
  return x;
}

// What one memory instruction moves: up to 16 bytes.
template <typename Element, int kLanes>
struct alignas(sizeof(Element) * kLanes) Pack {
  Element values[kLanes];
};

}  // namespace custom_gelu::cuda
