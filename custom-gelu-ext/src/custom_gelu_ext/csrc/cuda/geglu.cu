// GEGLU: gelu(gate) * value, forward and backward.
#include "../operations.h"
#include "elementwise.cuh"
#include "launchers.h"

namespace custom_gelu::cuda {

cudaError_t geglu(const Operands& operands, cudaStream_t stream) {
  return dispatch<Elements>(operands.type, operands.mode, Launch<Geglu>{operands, stream});
}

cudaError_t geglu_backward(const Operands& operands, cudaStream_t stream) {
  return dispatch<Elements>(operands.type, operands.mode, Launch<GegluBackward>{operands, stream});
}

}  // namespace custom_gelu::cuda
