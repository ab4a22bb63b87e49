// gelu'(x) in 8 bits or 1 bit instead of x: what backward needs, in less memory.
//
// Eight bits hold the derivative itself, which lies between -0.13 and 1.13, in steps of 1/202, so
// that 0 and 1 (where most large inputs are) are exact. That takes the codes from 0 to 254; 255 is
// a NaN's.
//
// One bit is enough beside the result, which the next layer keeps anyway: gelu falls to its minimum
// and then rises, so on either side of it the result determines x and the derivative; the bit tells
// the side. Near the minimum both are smooth functions of s = sqrt(gelu(x) - minimum), of which a
// polynomial makes the derivative. (That GELU can be inverted so is from Andoorveedu et al.,
// "Tempo", arXiv:2210.10246, which keeps a byte for the side.) The result was rounded to its type,
// which near the minimum, where it hardly depends on x, leaves the derivative uncertain: by 0.02 in
// bfloat16.
#pragma once

#include "gelu_math.h"

namespace custom_gelu {

constexpr int kZeroCode = 26, kNanCode = 255;
constexpr float kCodesPerUnit = 202.0f;

// Written so that the CPU's loop has no branch: adding 1.5 * 2^23 rounds.
GELU_FN uint8_t eight_bits(float derivative) {
  const float code = derivative * kCodesPerUnit + (Bits<float>::kRound + float(kZeroCode));
  const uint32_t bits = bit_cast<uint32_t>(code);
#ifdef __CUDA_ARCH__
  return uint8_t(bits);  // a NaN that a GPU computes is 0x7fffffff: it ends in kNanCode as it is
#else
  const bool nan = (bits & ~Bits<float>::kSign) > Bits<float>::kInfinity;
  return uint8_t(nan ? kNanCode : bits);
#endif
}
GELU_FN uint8_t eight_bits(double derivative) {
  return eight_bits(float(derivative));
}
GELU_FN float from_eight_bits(uint8_t code) {
  const float derivative = float(int(code) - kZeroCode) * (1.0f / kCodesPerUnit);
  return bit_cast<float>(bit_cast<uint32_t>(derivative) | (code == kNanCode ? 0x7fc00000u : 0u));
}

// Where gelu is least, and its value there.
template <Mode kMode>
struct Minimum {
  static constexpr float kX = kMode == Mode::kExact ? -0.751791525f : -0.752461422f;
  static constexpr float kValue = kMode == Mode::kExact ? -0.169971207f : -0.170040751f;
};

template <Mode kMode, typename Real>
GELU_FN bool right_of_minimum(Real x) {
  return x > Real(Minimum<kMode>::kX);
}

// gelu'(x) from gelu(x) and the side of the minimum; within 7e-4 if gelu(x) is exact. 0 for -0 on
// the left, which is where x is far out. Coefficients are printed by tools/fit_coefficients.py.
template <Mode kMode>
GELU_FN float derivative_from_value(float value, bool right) {
  const auto either = [right](float r, float l) { return right ? r : l; };
  const float above = value - Minimum<kMode>::kValue;
  const float s = sqrtf(above < 0.0f ? 0.0f : above);
  float z, d;
  if constexpr (kMode == Mode::kExact) {
    z = fma_(s, either(0.822121343f, 4.85112333f), -1.0f);
    z = z > 1.0f ? 1.0f : z;
    d = polynomial(z, either(1.12860632f, -0.125477433f), either(-0.0139967278f, -0.0400147587f),
                   either(-1.38888693f, 0.119669534f), either(1.44664955f, 0.0183331389f),
                   either(2.1944468f, -0.0947592854f), either(-1.59247839f, 0.0532079153f),
                   either(-3.31474447f, 0.311892688f), either(0.860446036f, -0.0778573453f),
                   either(2.76775074f, -0.374446452f), either(-0.200117767f, 0.046087794f),
                   either(-0.88732326f, 0.163121104f));
  } else {
    z = fma_(s, either(0.822163044f, 4.85013122f), -1.0f);
    z = z > 1.0f ? 1.0f : z;
    d = polynomial(z, either(1.12878788f, -0.125517815f), either(-0.00957650691f, -0.0403278284f),
                   either(-1.38736582f, 0.122497715f), either(1.40575695f, 0.014778642f),
                   either(2.16163373f, -0.127107069f), either(-1.47220373f, 0.0661870688f),
                   either(-3.2039516f, 0.406812638f), either(0.719762266f, -0.0986730754f),
                   either(2.63143635f, -0.488547355f), either(-0.14308767f, 0.0577165f),
                   either(-0.830540776f, 0.211862087f));
  }
  return !right && value == 0.0f ? 0.0f : d;
}

}  // namespace custom_gelu
