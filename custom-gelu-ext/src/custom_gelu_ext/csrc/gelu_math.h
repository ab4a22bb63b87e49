// GELU and its derivative without cancellation; the one formula that the CPU and the GPU run.
//
// gelu(x) = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2. Computed as it stands this loses
// everything for x below -2: erf comes close to -1, and the sum keeps only the digits that erf
// happened to have beyond it (float: exactly 0 from about x = -6, though gelu(-6) = -5.9e-9 is an
// ordinary number).
//
// Written with the tail Q(a) = 1 - Phi(a), a = |x|, nothing cancels. Phi(-a) = Q(a), so
//     x >= 0:  gelu(x) = a (1 - Q(a)) = x - a Q(a)      (Q <= 1/2: the difference is harmless)
//     x <  0:  gelu(x) = -a Q(a)                        (a product: as exact as Q)
// that is gelu(x) = max(x, 0) - a Q(a). And Q(a) = exp(-a^2/2) R(a), where R is smooth and slow:
// a short polynomial in t = 1/(1 + k a) approximates it, or a quotient of two in a (Single). One
// exponential and one division in all.
//
// The derivative Phi(x) + x phi(x), phi(x) = exp(-x^2/2) / sqrt(2 pi), has the same two parts:
//     d(a) = Q(a) - a phi(a) = exp(-a^2/2) (R(a) - a / sqrt(2 pi)),   gelu'(-a) = d(a),
//     gelu'(a) = 1 - d(a).
// tanh mode: (1 + tanh u) / 2 = sigmoid(2u), so the same with q(a) = sigmoid(-w) = e^-w / (1 +
// e^-w), w = 2u(a); its derivative is d(a) = q (1 - a w'(a) (1 - q)).
//
// The exponent needs care: an error of 2^-24 relative to w = 80 is 5e-6 in e^-w. Single and Double
// therefore carry a^2 (and a^3) as an unevaluated sum of two numbers: s + s_lo = a^2 exactly, with
// s_lo = fma(a, a, -s). For 16-bit x, a^2 is exact in float already, and Lean leaves the rest out.
//
// e^-w leaves the normal range of numbers, and loses bits, before a e^-w does. So its square root
// is computed, which stays inside, and multiplied in twice: a R(a) root root rounds well to the
// end.
//
// At the edges: gelu(+Inf) = Inf, gelu(-Inf) = -0 (the limit; x * 0 would be NaN), gelu(-0) = -0,
// NaN gives NaN, and a result too small for the type becomes -0, as IEEE underflow does;
// gelu'(+Inf) = 1, gelu'(-Inf) = 0.
#pragma once

#include "arithmetic.h"
#include "kinds.h"

namespace custom_gelu {

// kLimit is where e^-w has become 0: |x| is cut there, so that no Inf * 0 can arise.
template <typename Precision, Mode kMode>
struct Tail;

// Exact: the tail Q of the normal distribution.

// exp(-a^2/4) = 2^-(a^2 log2(e)/4).
template <typename Precision, typename Real>
GELU_FN Real gaussian_root(Real a) {
  constexpr double kQuarterLog2e = 0.36067376022224085;
  constexpr Real kHigh = Real(kQuarterLog2e);
  const Real s = a * a;
#ifdef __CUDA_ARCH__
  if constexpr (kIsLean<Precision>) return exp2_device(-s * kHigh);
#endif
  const auto n = nearest(s * kHigh);
  Real f = fma_(-s, kHigh, n.real);
  if constexpr (!kIsLean<Precision>) {
    Real lost = fma_(a, a, -s);
    // What the constant lost to rounding; in float it is small, and tail_ratio makes it good.
    if constexpr (sizeof(Real) == 8) lost = fma_(s, 5.0888184352327585e-18 / kHigh, lost);
    f = fma_(-kHigh, lost, f);
  }
  return exp2_split<Precision>(f, n.word);
}

// R(a) = Q(a) exp(a^2/2). Printed by tools/fit_coefficients.py: relative error 1.7e-7 (Single),
// 1.1e-5 (Lean). For Single a quotient of polynomials, whose coefficients are all positive, so that
// nothing cancels; R(0) is exactly 1/2.
template <typename Precision>
GELU_FN float tail_ratio(float a) {
  if constexpr (kIsLean<Precision>) {
    const float t = reciprocal(fma_(0.3f, a, 1.0f));
    return t * polynomial(t, 0.120013259f, 0.114408128f, 0.141501695f, -0.0118679302f, 0.211535886f,
                          -0.0755855814f);
  } else {
    // Even and odd powers apart: half the waiting of Horner's scheme.
    const float s = a * a;
    const float above = fma_(polynomial(s, 0.343099654f, 0.0147190886f), a,
                             polynomial(s, 0.5f, 0.109273411f, 1.81512064e-07f));
    const float below = fma_(polynomial(s, 1.48407793f, 0.273415238f), a,
                             polynomial(s, 1.0f, 0.902730584f, 0.0369185992f));
    return divide(above, below);
  }
}

// For double, in z = 2.25 t - 1.25, which lies in [-1.05, 1], so that rounding stays small: 1.4e-15
// in all. The first coefficient is such that R(0) is exactly 1/2.
template <typename Precision>
GELU_FN double tail_ratio(double a) {
  const double t = reciprocal(fma_(0.25, a, 1.0));
  const double z = fma_(2.25, t, -1.25);
  return t * polynomial(z, 0.20696846547929712, 0.15581603510421194, 0.08965532426330468,
                        0.037608413228580724, 0.009967619546716194, 0.0006676117356685335,
                        -0.0005765979376363221, -0.0001547372314389479, 3.464856076075049e-05,
                        1.7836733777191633e-05, -3.2411627650448838e-06, -1.9843677926704847e-06,
                        4.874304762180543e-07, 2.099541458075793e-07, -8.786026791851681e-08,
                        -1.7139402318224605e-08, 1.5168755585161177e-08, 3.5290776714477613e-10,
                        -2.147391055912656e-09, 1.0426086015219123e-10, 1.8383089372038443e-10);
}

template <typename Precision>
struct Tail<Precision, Mode::kExact> {
  using Real = typename Precision::Real;
  // exp(-112) < 2^-150 and exp(-800) < 2^-1075: below a quarter of the smallest subnormal.
  static constexpr Real kLimit = sizeof(Real) == 8 ? 40 : 15;
  static constexpr Real kInvSqrt2Pi = Real(0.39894228040143267794);

  // a Q(a)
  static GELU_FN Real tail(Real x) {
    const Real a = clamped_abs(x, kLimit);
    const Real root = gaussian_root<Precision>(a);
    return a * tail_ratio<Precision>(a) * root * root;
  }
  // d(a)
  static GELU_FN Real derivative(Real x) {
    const Real a = clamped_abs(x, kLimit);
    const Real root = gaussian_root<Precision>(a);
    return fma_(-kInvSqrt2Pi, a, tail_ratio<Precision>(a)) * root * root;
  }
  // (2 - a^2) phi(a)
  static GELU_FN Real second_derivative(Real x) {
    const Real a = clamped_abs(x, kLimit);
    const Real root = gaussian_root<Precision>(a);
    return fma_(-a, a, Real(2)) * kInvSqrt2Pi * root * root;
  }
};

// tanh: the tail q of a sigmoid.

// w = 2u(a) = c1 a + c3 a^3, c1 = 2 sqrt(2/pi), c3 = 0.044715 c1. K1 and K3 are c1 and c3 times
// log2(e)/2; for each, what rounding to Real takes off.
template <typename Real>
struct TanhConstants {
  static constexpr double kC1 = 1.5957691216057308, kC3 = 0.07135481627260025;
  static constexpr double kK1 = 1.1511040990721624, kK3 = 0.05147161979001175;
  static constexpr bool kWide = sizeof(Real) == 8;
  static constexpr Real kK1Low = kWide ? Real(6.566413020384856e-17) : Real(kK1 - Real(kK1));
  static constexpr Real kK3Low = kWide ? Real(-2.989088700359372e-18) : Real(kK3 - Real(kK3));
};

// e^(-w(a)/2) = 2^-(K1 a + K3 a^3).
template <typename Precision, typename Real>
GELU_FN Real exp_minus_w_root(Real a) {
  using C = TanhConstants<Real>;
  constexpr Real kK1 = Real(C::kK1), kK3 = Real(C::kK3);
  const Real s = a * a;
  const Real y = a * fma_(kK3, s, kK1);
#ifdef __CUDA_ARCH__
  if constexpr (kIsLean<Precision>) return exp2_device(-y);
#endif
  const auto n = nearest(y);
  if constexpr (kIsLean<Precision>) {
    return exp2_split<Precision>(n.real - y, n.word);
  } else {
    // Each of the two terms is taken from an integer near it, so that both differences are small
    // and rounded once; the integers add up to n.
    const Real cube = s * a;
    const Real cube_low = fma_(s, a, -cube) + fma_(a, a, -s) * a;
    const Real n1 = nearest(kK1 * a).real;
    const Real f1 = fma_(-kK1, a, n1);
    const Real f3 = fma_(-kK3, cube, n.real - n1);
    const Real low = fma_(C::kK1Low, a, fma_(C::kK3Low, cube, kK3 * cube_low));
    return exp2_split<Precision>((f1 + f3) - low, n.word);
  }
}

template <typename Precision>
struct Tail<Precision, Mode::kTanh> {
  using Real = typename Precision::Real;
  static constexpr Real kLimit = sizeof(Real) == 8 ? 22 : 12;  // there e^-w is 2^-1147, 2^-206

  // a q(a)
  static GELU_FN Real tail(Real x) {
    const Real a = clamped_abs(x, kLimit);
    const Real root = exp_minus_w_root<Precision>(a);
    const Real one_minus_q = reciprocal(1 + root * root);
    return a * one_minus_q * root * root;
  }
  // d(a)
  static GELU_FN Real derivative(Real x) {
    using C = TanhConstants<Real>;
    const Real a = clamped_abs(x, kLimit);
    const Real root = exp_minus_w_root<Precision>(a);
    const Real one_minus_q = reciprocal(1 + root * root);
    const Real a_w_prime = a * fma_(Real(3 * C::kC3), a * a, Real(C::kC1));
    const Real factor = fma_(-a_w_prime, one_minus_q, Real(1)) * one_minus_q;
    return factor * root * root;
  }
  // -(a q)'' = q (1 - q) (2 w' + a w'' - a w'^2 (1 - 2q)), since q' = -w' q (1 - q)
  static GELU_FN Real second_derivative(Real x) {
    using C = TanhConstants<Real>;
    const Real a = clamped_abs(x, kLimit);
    const Real root = exp_minus_w_root<Precision>(a);
    const Real square = root * root;
    const Real one_minus_q = reciprocal(1 + square);
    const Real one_minus_2q = (1 - square) * one_minus_q;
    const Real w1 = fma_(Real(3 * C::kC3), a * a, Real(C::kC1));
    const Real bend = fma_(-(a * w1) * one_minus_2q, w1, fma_(Real(6 * C::kC3), a * a, 2 * w1));
    return bend * one_minus_q * one_minus_q * root * root;
  }
};

// Both modes.

// gelu(x) for one x. positive_part's -0 makes every negative x's result negative, also where the
// tail is 0.
template <typename Precision, Mode kMode, typename Real>
GELU_FN Real gelu_value(Real x) {
  return positive_part(x) - Tail<Precision, kMode>::tail(x);
}

// gelu'(x) for one x.
template <typename Precision, Mode kMode, typename Real>
GELU_FN Real gelu_derivative(Real x) {
  return or_nan(x, reflected(x, Tail<Precision, kMode>::derivative(x)));
}

// gelu''(x) for one x; an even function, since gelu(x) - gelu(-x) = x.
template <typename Precision, Mode kMode, typename Real>
GELU_FN Real gelu_second_derivative(Real x) {
  return or_nan(x, Tail<Precision, kMode>::second_derivative(x));
}

}  // namespace custom_gelu
