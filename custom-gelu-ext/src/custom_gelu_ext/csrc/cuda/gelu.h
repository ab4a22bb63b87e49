// The CUDA launchers: n elements in memory order, on the current device. out may alias an input.
// Any alignment of the element type is accepted; 16-byte aligned pointers are faster. n = 0
// launches nothing. The launch's error is returned, an error of the kernel's own run shows at the
// next synchronisation, as always in CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../kinds.h"

namespace custom_gelu::cuda {

// out = gelu(x)
cudaError_t gelu(Type type, Mode mode, const void* x, void* out, int64_t n, cudaStream_t stream);

// out = grad * gelu'(x)
cudaError_t gelu_backward(Type type, Mode mode, const void* grad, const void* x, void* out,
                          int64_t n, cudaStream_t stream);

}  // namespace custom_gelu::cuda
