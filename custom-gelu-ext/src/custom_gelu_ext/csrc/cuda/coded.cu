// GELU that keeps a code of its derivative, and the gradient from that code.
//
// A thread takes 8 elements, whose single bits make one byte.
#include "../derivative_code.h"
#include "../operations.h"
#include "elementwise.cuh"
#include "launchers.h"

namespace custom_gelu::cuda {
namespace {

constexpr int kThreads = 256, kGroup = 8;

// The 8 elements from `first` on, in 16-byte accesses; near the end, or misaligned, one by one.
template <typename Element>
struct Group {
  static constexpr int kLanes = kPackBytes / sizeof(Element);
  union {
    Pack<Element, kLanes> packs[kGroup / kLanes];
    Element values[kGroup];
  };
  __device__ Group() {}
  __device__ __forceinline__ void load(const void* base, int64_t first, int count, bool aligned) {
    const auto* from = static_cast<const Element*>(base) + first;
    if (aligned && count == kGroup) {
#pragma unroll
      for (int p = 0; p < kGroup / kLanes; ++p) {
        packs[p] = reinterpret_cast<const Pack<Element, kLanes>*>(from)[p];
      }
    } else {
      for (int k = 0; k < count; ++k) values[k] = from[k];
    }
  }
  __device__ __forceinline__ void store(void* base, int64_t first, int count, bool aligned) const {
    auto* to = static_cast<Element*>(base) + first;
    if (aligned && count == kGroup) {
#pragma unroll
      for (int p = 0; p < kGroup / kLanes; ++p) {
        reinterpret_cast<Pack<Element, kLanes>*>(to)[p] = packs[p];
      }
    } else {
      for (int k = 0; k < count; ++k) to[k] = values[k];
    }
  }
};

__device__ __forceinline__ void load_codes(const uint8_t* from, uint8_t (&codes)[kGroup], int count,
                                           bool aligned) {
  if (aligned && count == kGroup) {
    *reinterpret_cast<uint2*>(codes) = *reinterpret_cast<const uint2*>(from);
  } else {
    for (int k = 0; k < count; ++k) codes[k] = from[k];
  }
}
__device__ __forceinline__ void store_codes(uint8_t* to, const uint8_t (&codes)[kGroup], int count,
                                            bool aligned) {
  if (aligned && count == kGroup) {
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(codes);
  } else {
    for (int k = 0; k < count; ++k) to[k] = codes[k];
  }
}

template <typename Precision, Mode kMode, typename Element, Code kCode>
__global__ void __launch_bounds__(kThreads) encode_kernel(Coded c, bool aligned) {
  const int64_t group = int64_t(blockIdx.x) * kThreads + threadIdx.x, first = group * kGroup;
  if (first >= c.count) return;
  const int count = int(min(int64_t(kGroup), c.count - first));
  Group<Element> x, y;
  x.load(c.input, first, count, aligned);
  alignas(8) uint8_t codes[kGroup];
  unsigned bits = 0;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const auto wide = widen(x.values[k]);
    y.values[k] = narrow<Element>(gelu_value<Precision, kMode>(wide));
    if constexpr (kCode == Code::kEight) {
      codes[k] = eight_bits(gelu_derivative<Precision, kMode>(wide));
    } else if (k < count) {
      bits |= unsigned(right_of_minimum<kMode>(wide)) << k;
    }
  }
  y.store(c.output, first, count, aligned);
  if constexpr (kCode == Code::kEight) {
    store_codes(c.codes + first, codes, count, aligned);
  } else {
    c.codes[group] = uint8_t(bits);
  }
}

template <Mode kMode, typename Element, Code kCode>
__global__ void __launch_bounds__(kThreads) decode_kernel(Coded c, bool aligned) {
  const int64_t group = int64_t(blockIdx.x) * kThreads + threadIdx.x, first = group * kGroup;
  if (first >= c.count) return;
  const int count = int(min(int64_t(kGroup), c.count - first));
  Group<Element> grad, value, out;
  grad.load(c.input, first, count, aligned);
  alignas(8) uint8_t codes[kGroup];
  unsigned bits = 0;
  if constexpr (kCode == Code::kEight) {
    load_codes(c.codes + first, codes, count, aligned);
  } else {
    value.load(c.value, first, count, aligned);
    bits = c.codes[group];
  }
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    float derivative;
    if constexpr (kCode == Code::kEight) {
      derivative = from_eight_bits(codes[k]);
    } else {
      derivative =
          derivative_from_value<kMode>(float(widen(value.values[k])), ((bits >> k) & 1u) != 0);
    }
    out.values[k] = narrow<Element>(widen(grad.values[k]) * derivative);
  }
  out.store(c.output, first, count, aligned);
}

bool is_aligned(const Coded& c) {
  uintptr_t any = reinterpret_cast<uintptr_t>(c.input) | reinterpret_cast<uintptr_t>(c.output) |
                  reinterpret_cast<uintptr_t>(c.value);
  return (any | 2 * reinterpret_cast<uintptr_t>(c.codes)) % kPackBytes == 0;
}

unsigned blocks_of(const Coded& c) {
  return unsigned((c.count + kThreads * kGroup - 1) / (kThreads * kGroup));
}

struct Encode {
  const Coded& c;
  cudaStream_t stream;
  template <typename Element, typename Precision, Mode kMode>
  cudaError_t operator()() const {
    const auto kernel = c.code == Code::kEight
                            ? encode_kernel<Precision, kMode, Element, Code::kEight>
                            : encode_kernel<Precision, kMode, Element, Code::kOne>;
    kernel<<<blocks_of(c), kThreads, 0, stream>>>(c, is_aligned(c));
    return cudaGetLastError();
  }
};

struct Decode {
  const Coded& c;
  cudaStream_t stream;
  template <typename Element, typename Precision, Mode kMode>
  cudaError_t operator()() const {
    const auto kernel = c.code == Code::kEight ? decode_kernel<kMode, Element, Code::kEight>
                                               : decode_kernel<kMode, Element, Code::kOne>;
    kernel<<<blocks_of(c), kThreads, 0, stream>>>(c, is_aligned(c));
    return cudaGetLastError();
  }
};

}  // namespace

cudaError_t encode(const Coded& coded, cudaStream_t stream) {
  if (coded.count == 0) return cudaSuccess;
  return dispatch<Elements>(coded.type, coded.mode, Encode{coded, stream});
}

cudaError_t decode(const Coded& coded, cudaStream_t stream) {
  if (coded.count == 0) return cudaSuccess;
  return dispatch<Elements>(coded.type, coded.mode, Decode{coded, stream});
}

}  // namespace custom_gelu::cuda
