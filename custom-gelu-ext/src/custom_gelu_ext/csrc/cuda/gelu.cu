// GELU itself: forward, backward and double backward.
#include "../operations.h"
#include "elementwise.cuh"
#include "launchers.h"

namespace custom_gelu::cuda {

cudaError_t gelu(const Operands& operands, cudaStream_t stream) {
  return dispatch<Elements>(operands.type, operands.mode, Launch<Gelu>{operands, stream});
}

cudaError_t gelu_backward(const Operands& operands, cudaStream_t stream) {
  return dispatch<Elements>(operands.type, operands.mode, Launch<GeluBackward>{operands, stream});
}

}  // namespace custom_gelu::cuda
