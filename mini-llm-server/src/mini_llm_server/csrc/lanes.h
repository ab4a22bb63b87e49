// Sixteen numbers at once: one AVX-512 register of float, two of AVX2, four of NEON. GCC and Clang
// compile the same source to whichever the CPU has.
#pragma once

#include <c10/util/BFloat16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace mini_llm_server {

constexpr int64_t kLanes = 16;

template <typename A>
struct LanesOf {
  typedef A type __attribute__((vector_size(kLanes * sizeof(A))));
};
template <typename A>
using Lanes = typename LanesOf<A>::type;

template <typename A>
inline Lanes<A> all(A value) {
  return Lanes<A>{} + value;
}

inline Lanes<float> load(const float* source) {
  Lanes<float> lanes;
  std::memcpy(&lanes, source, sizeof lanes);
  return lanes;
}

inline Lanes<double> load(const double* source) {
  Lanes<double> lanes;
  std::memcpy(&lanes, source, sizeof lanes);
  return lanes;
}

// A bfloat16 is the upper half of a float.
inline Lanes<float> load(const c10::BFloat16* source) {
  Lanes<uint16_t> half;
  std::memcpy(&half, source, sizeof half);
  const Lanes<uint32_t> bits = __builtin_convertvector(half, Lanes<uint32_t>) << 16;
  Lanes<float> lanes;
  std::memcpy(&lanes, &bits, sizeof lanes);
  return lanes;
}

// The first `count` numbers and zeros behind them; nothing beyond is read.
template <typename T>
inline auto load_some(const T* source, int64_t count) {
  T padded[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = source[i];
  return load(padded);
}

template <typename A>
inline Lanes<A> larger(Lanes<A> a, Lanes<A> b) {
  return a < b ? b : a;
}

// a0 + a8, b0 + b8, a1 + a9, b1 + b9, ...
template <typename A>
inline Lanes<A> add_halves(Lanes<A> a, Lanes<A> b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23) +
         __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}

// Lane i of the result is the sum over all lanes of rows[i]. Overwrites the rows.
template <typename A>
inline Lanes<A> row_sums(Lanes<A> (&rows)[kLanes]) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) rows[i] = add_halves<A>(rows[i], rows[i + 8]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) rows[i] = add_halves<A>(rows[i], rows[i + 4]);
  const Lanes<A> even = add_halves<A>(rows[0], rows[2]);
  const Lanes<A> odd = add_halves<A>(rows[1], rows[3]);
  return add_halves<A>(even, odd);
}

template <typename A>
inline A sum(Lanes<A> x) {
  x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  return (x[0] + x[2]) + (x[1] + x[3]);
}

template <typename A>
inline A largest(Lanes<A> x) {
  x = larger<A>(
      x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = larger<A>(
      x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  const A a = x[0] < x[2] ? x[2] : x[0];
  const A b = x[1] < x[3] ? x[3] : x[1];
  return a < b ? b : a;
}

// exp(x) for x <= 0, to 2 ulp: 2^i * e^y with |y| <= ln(2) / 2, and e^y by its Taylor series. NaN
// stays NaN; below -87 the result is 0.
inline Lanes<float> exp_nonpositive(Lanes<float> x) {
  const Lanes<float> bounded = x < all(-87.0f) ? all(-87.0f) : x;
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
  const Lanes<float> i = (bounded * 1.44269504f + round) - round;
  const Lanes<float> y = (bounded - i * 0.693359375f) + i * 2.12194440e-4f;  // ln 2 in two parts
  Lanes<float> p = all(1.0f / 5040);
  p = p * y + 1.0f / 720;
  p = p * y + 1.0f / 120;
  p = p * y + 1.0f / 24;
  p = p * y + 1.0f / 6;
  p = p * y + 0.5f;
  p = p * y + 1.0f;
  p = p * y + 1.0f;
  const Lanes<int32_t> bits = (__builtin_convertvector(i, Lanes<int32_t>) + 127) << 23;
  Lanes<float> power;
  std::memcpy(&power, &bits, sizeof power);
  const Lanes<float> e = x < all(-87.0f) ? all(0.0f) : p * power;
  return x == x ? e : x;
}

inline Lanes<double> exp_nonpositive(Lanes<double> x) {
  for (int64_t i = 0; i < kLanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace mini_llm_server
