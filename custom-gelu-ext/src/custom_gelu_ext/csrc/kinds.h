// What a kernel is asked for: the element type and which of the two GELUs.
#pragma once

namespace custom_gelu {

enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16 };

// kExact: x Phi(x), Phi the normal distribution. kTanh: x (1 + tanh(u)) / 2 with
// u = sqrt(2/pi) (x + 0.044715 x^3), the approximation that GPT-2 was trained with.
enum class Mode { kExact, kTanh };

}  // namespace custom_gelu
