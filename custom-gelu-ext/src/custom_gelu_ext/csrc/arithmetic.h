// The few scalar operations that gelu_math.h needs, for the CPU and the GPU: all branch-free, so
// that the compiler can turn a loop over them into vector instructions (std::exp it could not).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#define GELU_FN __host__ __device__ __forceinline__
#else
#define GELU_FN inline __attribute__((always_inline))
#endif

namespace custom_gelu {

// How exact a result is wanted. Lean: computed in float, then rounded to 16 bits, so an error of
// 1e-5 is invisible. Single and Double: right to a few units in the last place of float and double.
struct Lean {
  using Real = float;
};
struct Single {
  using Real = float;
};
struct Double {
  using Real = double;
};

template <typename Precision>
constexpr bool kIsLean = false;
template <>
inline constexpr bool kIsLean<Lean> = true;

template <typename Real>
struct Bits;
template <>
struct Bits<float> {
  using Word = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Word kSign = 0x80000000u;
  static constexpr Word kInfinity = 0x7f800000u;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves no room for a fraction
};
template <>
struct Bits<double> {
  using Word = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr Word kSign = 0x8000000000000000u;
  static constexpr Word kInfinity = 0x7ff0000000000000u;
  static constexpr double kRound = 0x1.8p52;
};

template <typename To, typename From>
GELU_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

GELU_FN float fma_(float x, float y, float z) {
  return fmaf(x, y, z);
}
GELU_FN double fma_(double x, double y, double z) {
  return ::fma(x, y, z);
}
GELU_FN float abs_(float x) {
  return fabsf(x);
}
GELU_FN double abs_(double x) {
  return ::fabs(x);
}

// On the GPU "ftz" spares what only a subnormal or huge y would need: here y is from 1 to 1e4.
// Within 2 units in the last place.
GELU_FN float divide(float x, float y) {
#ifdef __CUDA_ARCH__
  float quotient;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
  return quotient;
#else
  return x / y;
#endif
}
GELU_FN float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1.0f / x;
#endif
}
GELU_FN double reciprocal(double x) {
#ifdef __CUDA_ARCH__
  double guess;  // to 20 bits; with the error e = 1 - x guess, 1/x = guess (1 + e + e^2 + ...)
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(guess) : "d"(x));
  const double e = ::fma(-x, guess, 1.0);
  return ::fma(guess, ::fma(e, e, e), guess);
#else
  return 1.0 / x;
#endif
}

// c0 + c1 z + c2 z^2 ... by Horner's scheme. Unrolled by recursion: a loop here would be one more
// inside the loop over the elements, and GCC vectorises innermost loops only.
template <typename Real>
GELU_FN Real polynomial(Real, Real c0) {
  return c0;
}
template <typename Real, typename... More>
GELU_FN Real polynomial(Real z, Real c0, More... more) {
  return fma_(polynomial(z, more...), z, c0);
}

// 2^f for |f| <= 0.5. The coefficients are printed by tools/fit_coefficients.py: relative error
// 9.1e-8 (Single) and 2.8e-6 (Lean) before rounding.
template <typename Precision>
GELU_FN float exp2_fraction(float f) {
  if constexpr (kIsLean<Precision>) {
    return polynomial(f, 1.0f, 0.693124175f, 0.240240991f, 0.0559064262f, 0.00958285294f);
  } else {
    return polynomial(f, 1.0f, 0.693147004f, 0.240222424f, 0.0555073358f, 0.00967151299f,
                      0.00132647273f);
  }
}
template <typename Precision>
GELU_FN double exp2_fraction(double f) {  // 2.0e-17
  return polynomial(f, 1.0, 0.6931471805599453, 0.24022650695910097, 0.0555041086648216,
                    0.009618129107606888, 0.0013333558146416936, 0.0001540353044173605,
                    1.525273382983612e-05, 1.321544258792169e-06, 1.0178062445845774e-07,
                    7.072585949269223e-09, 4.4549605981865186e-10);
}

// 2^x for x from -126 to 0, with the GPU's own instruction, within 2 units in the last place.
#ifdef __CUDA_ARCH__
GELU_FN float exp2_device(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#endif

// The nearest integer n to y >= 0 (y far below 2^22), and a word that ends in n's bits. With y
// + 1.5
// * 2^23 the sum's last bit stands for 1, so that the addition itself rounds, and its low bits are
// n.
template <typename Real>
struct Nearest {
  Real real;
  typename Bits<Real>::Word word;
};
template <typename Real>
GELU_FN Nearest<Real> nearest(Real y) {
  const Real sum = y + Bits<Real>::kRound;
  return {sum - Bits<Real>::kRound, bit_cast<typename Bits<Real>::Word>(sum)};
}

// 2^(f - n) for |f| <= 0.5 and n >= 0 such that the result is a normal number: 2^f, and n taken off
// its exponent bits. Only n's low bits count: the shift drops the others.
template <typename Precision, typename Real>
GELU_FN Real exp2_split(Real f, typename Bits<Real>::Word n) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Real) == 4) {
    const Real power = exp2_device(f);
    return bit_cast<Real>(bit_cast<uint32_t>(power) - (n << Bits<Real>::kMantissa));
  }
#endif
  using Word = typename Bits<Real>::Word;
  const Real power = exp2_fraction<Precision>(f);
  return bit_cast<Real>(Word(bit_cast<Word>(power) - (n << Bits<Real>::kMantissa)));
}

// The choices between two values. On the CPU they are integer arithmetic on the bits, because of a
// ?: on floats GCC makes branches (a comparison may raise a floating-point flag), and a loop with
// branches is not vectorised. On the GPU a ?: is a comparison and a selection, a minimum or maximum
// of floats one instruction.
//
// A NaN goes another way on each. On the GPU |x| stays NaN, and with it everything computed from
// it. On the CPU, where its bits would be taken for a large number's, |x| is cut to the limit, and
// positive_part and or_nan bring the NaN back.

// |x|, but at most limit.
#ifdef __CUDA_ARCH__
GELU_FN float clamped_abs(float x, float limit) {
  const float a = abs_(x);
#if __CUDA_ARCH__ >= 800
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(limit));
  return least;
#else
  return a > limit ? limit : a;
#endif
}
GELU_FN double clamped_abs(double x, double limit) {
  const double a = abs_(x);
  return a > limit ? limit : a;
}
#else
template <typename Real>
GELU_FN Real clamped_abs(Real x, Real limit) {
  using Word = typename Bits<Real>::Word;
  const Word magnitude = bit_cast<Word>(x) & ~Bits<Real>::kSign;  // ordered as the values are
  const Word most = bit_cast<Word>(limit);
  return bit_cast<Real>(magnitude < most ? magnitude : most);
}
#endif

// x, or -0 where x is negative.
template <typename Real>
GELU_FN Real positive_part(Real x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Real) == 4) return fmaxf(x, -0.0f);
  return x < 0 ? Real(-0.0) : x;
#else
  using B = Bits<Real>;
  using Word = typename B::Word;
  const Word bits = bit_cast<Word>(x);
  // As signed integers: negative numbers down from -0, the least, up to -Inf; then NaN; then the
  // rest.
  using Signed = std::make_signed_t<Word>;
  return bit_cast<Real>(Signed(bits) <= Signed(B::kSign | B::kInfinity) ? B::kSign : bits);
#endif
}

// The value computed from x, or NaN where x is NaN.
template <typename Real>
GELU_FN Real or_nan(Real x, Real value) {
#ifdef __CUDA_ARCH__
  return value;
#else
  using B = Bits<Real>;
  using Word = typename B::Word;
  const Word bits = bit_cast<Word>(x);
  return bit_cast<Real>(Word(bits & ~B::kSign) > B::kInfinity ? bits : bit_cast<Word>(value));
#endif
}

// d where x is negative, else 1 - d.
template <typename Real>
GELU_FN Real reflected(Real x, Real d) {
#ifdef __CUDA_ARCH__
  return x >= 0 ? 1 - d : d;
#else
  using B = Bits<Real>;
  using Word = typename B::Word;
  const Word negative = Word(0) - (bit_cast<Word>(x) >> (8 * sizeof(Real) - 1));
  const Real one = bit_cast<Real>(Word(bit_cast<Word>(Real(1)) & ~negative));
  return one + bit_cast<Real>(Word(bit_cast<Word>(d) ^ (~negative & B::kSign)));
#endif
}

}  // namespace custom_gelu
