// The operators' CUDA implementations: device, stream and error handling around the launchers.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../operands.h"
#include "gelu.h"

namespace custom_gelu {
namespace {

void check_launch(cudaError_t error, const char* kernel, const at::Tensor& x) {
  TORCH_CHECK(error == cudaSuccess, kernel, " on ", x.scalar_type(), shape_of(x), ", ", x.device(),
              ": the launch failed: ", cudaGetErrorString(error));
}

at::Tensor gelu_cuda(const at::Tensor& x, c10::string_view approximate) {
  const Mode mode = mode_of(approximate);
  const Type type = type_of(x);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor out = at::empty_like(x);
  const at::Tensor source = in_layout_of(x, out);
  check_launch(cuda::gelu(type, mode, source.const_data_ptr(), out.mutable_data_ptr(), out.numel(),
                          c10::cuda::getCurrentCUDAStream()),
               "gelu", x);
  return out;
}

at::Tensor gelu_backward_cuda(const at::Tensor& grad, const at::Tensor& x,
                              c10::string_view approximate) {
  check_gradient(grad, x);
  const Mode mode = mode_of(approximate);
  const Type type = type_of(x);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor out = at::empty_like(x);
  const at::Tensor source = in_layout_of(x, out);
  const at::Tensor upstream = in_layout_of(grad, out);
  check_launch(
      cuda::gelu_backward(type, mode, upstream.const_data_ptr(), source.const_data_ptr(),
                          out.mutable_data_ptr(), out.numel(), c10::cuda::getCurrentCUDAStream()),
      "gelu_backward", x);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(custom_gelu_ext, CUDA, m) {
  m.impl("gelu", gelu_cuda);
  m.impl("gelu_backward", gelu_backward_cuda);
}

}  // namespace custom_gelu
