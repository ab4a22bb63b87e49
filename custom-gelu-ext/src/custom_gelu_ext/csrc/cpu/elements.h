// How the CPU's loops read and write each element type. The 16-bit conversions are integer
// arithmetic without branches, so that they vectorise with every compiler and instruction set.
#pragma once

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "../arithmetic.h"

namespace custom_gelu::cpu {

// condition ? yes : no, as arithmetic: see ../arithmetic.h on why a branch must not arise.
GELU_FN uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  return no ^ ((yes ^ no) & (0u - uint32_t(condition)));
}

// The raw bits of a c10::BFloat16 or c10::Half.
struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

struct Elements {
  using Float32 = float;
  using Float64 = double;
  using Float16 = Float16Bits;
  using BFloat16 = BFloat16Bits;
};

GELU_FN float load(const float* p) {
  return *p;
}
GELU_FN double load(const double* p) {
  return *p;
}
GELU_FN void store(float* p, float value) {
  *p = value;
}
GELU_FN void store(double* p, double value) {
  *p = value;
}

// bfloat16 is float's upper half.
GELU_FN float load(const BFloat16Bits* p) {
  return bit_cast<float>(uint32_t(p->bits) << 16);
}
GELU_FN void store(BFloat16Bits* p, float value) {
  const uint32_t word = bit_cast<uint32_t>(value);
  // Round to nearest, ties to even: just under half a unit, plus the bit that would become the
  // last. A NaN stays one, since its lower half is zero: it was widened from an input, or is the
  // one that arithmetic makes.
  p->bits = uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
}

// float16 has 5 exponent bits (bias 15) and 10 of mantissa; float 8 (bias 127) and 23.
GELU_FN float load(const Float16Bits* p) {
  const uint32_t half = p->bits;
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + ((127u - 15u) << 23);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;  // Inf and NaN keep their mantissa
  // A subnormal is magnitude * 2^-24: set below 2^-14's last bits, then the 2^-14 is taken away.
  const uint32_t smallest_normal = (127u - 14u) << 23;
  const float subnormal =
      bit_cast<float>((magnitude << 13) + smallest_normal) - bit_cast<float>(smallest_normal);
  const uint32_t finite = choose(magnitude < 0x400u, bit_cast<uint32_t>(subnormal), normal);
  return bit_cast<float>(choose(magnitude >= 0x7c00u, special, finite) | sign);
}
GELU_FN void store(Float16Bits* p, float value) {
  const uint32_t word = bit_cast<uint32_t>(value);
  const uint32_t sign = (word >> 16) & 0x8000u;
  const uint32_t magnitude = word & 0x7fffffffu;
  const uint32_t rebias = (127u - 15u) << 23;
  const uint32_t normal = (magnitude - rebias + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the last bit stands for 2^-24. Adding 0.5, whose own last bit is 2^-24, rounds
  // there.
  const uint32_t subnormal =
      bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  const uint32_t small = choose(magnitude < ((127u - 14u) << 23), subnormal, normal);
  // 65520 = 0x477ff000 is the least float that rounds to infinity.
  const uint32_t finite = choose(magnitude >= 0x477ff000u, 0x7c00u, small);
  p->bits = uint16_t(choose(magnitude > 0x7f800000u, 0x7e00u, finite) | sign);
}

// Whether runs of elements are converted apart from the arithmetic, for the sake of an instruction
// that the compiler does not find in the functions above.
template <typename Element>
constexpr bool kConvertedApart = false;
#ifdef __F16C__
template <>
inline constexpr bool kConvertedApart<Float16Bits> = true;

inline void load_run(const Float16Bits* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const auto* eight = reinterpret_cast<const __m128i*>(from + i);
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(eight)));
  }
  for (; i < n; ++i) to[i] = load(from + i);
}
inline void store_run(Float16Bits* to, const float* from, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    auto* eight = reinterpret_cast<__m128i*>(to + i);
    _mm_storeu_si128(eight, _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < n; ++i) store(to + i, from[i]);
}
#endif

}  // namespace custom_gelu::cpu
