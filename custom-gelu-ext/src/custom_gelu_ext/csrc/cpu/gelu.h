// The CPU kernels: n elements in memory order, on torch's intra-op threads. out may alias an input.
#pragma once

#include <cstdint>

#include "../kinds.h"

namespace custom_gelu::cpu {

// out = gelu(x)
void gelu(Type type, Mode mode, const void* x, void* out, int64_t n);

// out = grad * gelu'(x)
void gelu_backward(Type type, Mode mode, const void* grad, const void* x, void* out, int64_t n);

}  // namespace custom_gelu::cpu
