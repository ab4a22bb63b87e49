// The CUDA launchers: on the current device, in the given stream. Any alignment of the element type
// is accepted; 16-byte aligned rows are faster. Without elements nothing is launched. The launch's
// error is returned; an error of the kernel's own run shows at the next synchronisation, as always
// in CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include "../kinds.h"

namespace custom_gelu::cuda {

// Inputs and outputs in the order of operations.h.
cudaError_t gelu(const Operands& operands, cudaStream_t stream);
cudaError_t gelu_backward(const Operands& operands, cudaStream_t stream);
cudaError_t gelu_double_backward(const Operands& operands, cudaStream_t stream);
cudaError_t bias_gelu(const Operands& operands, cudaStream_t stream);
cudaError_t geglu(const Operands& operands, cudaStream_t stream);
cudaError_t geglu_backward(const Operands& operands, cudaStream_t stream);

// In: grad, x, and the bias, one row. Out: x's gradient, and the bias's, one row: the sum of the
// first over all rows. `partial` is memory for partial_rows() times width sums, float or (for
// float64) double.
int64_t partial_rows(const Operands& operands);
cudaError_t bias_gelu_backward(const Operands& operands, void* partial, cudaStream_t stream);

cudaError_t encode(const Coded& coded, cudaStream_t stream);
cudaError_t decode(const Coded& coded, cudaStream_t stream);

}  // namespace custom_gelu::cuda
