// The GPU's element types: the one that arithmetic is done in, and the way there and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

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

template <typename Element, int kLanes>
__device__ __forceinline__ auto widened(const Pack<Element, kLanes>& pack, int lane) {
  return widen(pack.values[lane]);
}
// bfloat16 is float's upper half, and a word holds two: a shift or a mask makes a float of either.
// Left to take out the upper one first, the compiler spends another instruction and register.
template <int kLanes>
__device__ __forceinline__ float widened(const Pack<__nv_bfloat16, kLanes>& pack, int lane) {
  if constexpr (kLanes % 2 != 0) return widen(pack.values[lane]);
  uint32_t word;
  memcpy(&word, &pack.values[lane / 2 * 2], sizeof(word));
  return __uint_as_float(lane % 2 == 0 ? word << 16 : word & 0xffff0000u);
}

// The pack that begins at an element.
template <int kLanes, typename Element>
__device__ __forceinline__ Pack<Element, kLanes> load(const Element* from) {
  return *reinterpret_cast<const Pack<Element, kLanes>*>(from);
}
// Writes a pack with one instruction, spelled out: of an assignment the compiler makes one here,
// four there, and those four cost a memory-bound kernel some 7% of its time.
template <typename Element, int kLanes>
__device__ __forceinline__ void store(Element* to, const Pack<Element, kLanes>& pack) {
  static_assert(kLanes == 1 || sizeof(pack) == 8 || sizeof(pack) == 16,
                "a pack has one element, 8 bytes or 16");
  uint32_t words[4];
  if constexpr (kLanes > 1) memcpy(words, &pack, sizeof(pack));
  if constexpr (kLanes == 1) {
    *to = pack.values[0];
  } else if constexpr (sizeof(pack) == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(words[0]), "r"(words[1])
                 : "memory");
  } else {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
  }
}

}  // namespace custom_gelu::cuda
