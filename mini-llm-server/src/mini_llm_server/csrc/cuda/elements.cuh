// Types as they are stored and as they are computed with, and memory accesses of up to 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "launchers.h"

namespace mini_llm_server::cuda {

template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

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

template <typename T>
__device__ __forceinline__ T narrow(Arithmetic<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// What one instruction loads or stores.
template <typename T, int kLanes>
struct alignas(sizeof(T) * kLanes) Pack {
  T values[kLanes];
};

template <int kLanes, typename T>
__device__ __forceinline__ Pack<T, kLanes> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kLanes>*>(from);
}
template <int kLanes, typename T>
__device__ __forceinline__ void store(T* to, const Pack<T, kLanes>& pack) {
  *reinterpret_cast<Pack<T, kLanes>*>(to) = pack;
}

template <typename T>
constexpr int kPackLanes = 16 / sizeof(T);

template <typename A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}
template <typename A>
__device__ __forceinline__ A warp_max(A x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

// Call work with a number of the storage type.
template <typename F>
cudaError_t dispatch(Type type, F work) {
  switch (type) {
    case Type::kFloat32:
      return work(float{});
    case Type::kFloat64:
      return work(double{});
    case Type::kFloat16:
      return work(__half{});
    case Type::kBFloat16:
      return work(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace mini_llm_server::cuda
