// The operators' schemas, and their CPU implementations. Importing the module (the last lines) runs
// the static registrations above it; after that torch.ops.custom_gelu_ext has the operators.
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include "cpu/gelu.h"
#include "operands.h"

namespace custom_gelu {
namespace {

at::Tensor gelu_cpu(const at::Tensor& x, c10::string_view approximate) {
  const Mode mode = mode_of(approximate);
  const Type type = type_of(x);
  at::Tensor out = at::empty_like(x);
  const at::Tensor source = in_layout_of(x, out);
  cpu::gelu(type, mode, source.const_data_ptr(), out.mutable_data_ptr(), out.numel());
  return out;
}

at::Tensor gelu_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                             c10::string_view approximate) {
  check_gradient(grad, x);
  const Mode mode = mode_of(approximate);
  const Type type = type_of(x);
  at::Tensor out = at::empty_like(x);
  const at::Tensor source = in_layout_of(x, out);
  const at::Tensor upstream = in_layout_of(grad, out);
  cpu::gelu_backward(type, mode, upstream.const_data_ptr(), source.const_data_ptr(),
                     out.mutable_data_ptr(), out.numel());
  return out;
}

}  // namespace

TORCH_LIBRARY(custom_gelu_ext, m) {
  m.def("gelu(Tensor x, str approximate='none') -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("gelu_backward(Tensor grad, Tensor x, str approximate='none') -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(custom_gelu_ext, CPU, m) {
  m.impl("gelu", gelu_cpu);
  m.impl("gelu_backward", gelu_backward_cpu);
}

}  // namespace custom_gelu

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Registers torch.ops.custom_gelu_ext.gelu and gelu_backward; has no functions itself.";
}
