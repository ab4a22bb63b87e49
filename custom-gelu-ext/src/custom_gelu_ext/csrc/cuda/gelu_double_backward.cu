// The second derivative, in a file of its own so that it compiles beside the first.
#include "../operations.h"
#include "elementwise.cuh"
#include "launchers.h"

namespace custom_gelu::cuda {

cudaError_t gelu_double_backward(const Operands& operands, cudaStream_t stream) {
  return dispatch<Elements>(operands.type, operands.mode,
                            Launch<GeluDoubleBackward>{operands, stream});
}

}  // namespace custom_gelu::cuda
