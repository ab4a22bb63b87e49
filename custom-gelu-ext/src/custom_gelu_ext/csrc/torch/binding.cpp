// The operators' schemas, and their CPU implementations. Importing the module (the last lines) runs
// the static registrations above it; after that torch.ops.custom_gelu_ext has the operators.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "../cpu/kernels.h"
#include "operators.h"

namespace custom_gelu {
namespace cpu {

void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& function) {
  at::parallel_for(0, n, grain, function);
}

}  // namespace cpu

namespace {

struct Cpu {
  struct Guard {
    explicit Guard(at::Device) {}
  };
  static void elementwise(Op op, const Operands& operands) { cpu::elementwise(op, operands); }
  static void bias_gelu_backward(const Operands& operands, const at::Tensor&) {
    cpu::bias_gelu_backward(operands);
  }
  static void encode(const Coded& coded) { cpu::encode(coded); }
  static void decode(const Coded& coded) { cpu::decode(coded); }
};

}  // namespace

TORCH_LIBRARY(custom_gelu_ext, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("gelu(Tensor x, str approximate='none') -> Tensor", tags);
  m.def("gelu_(Tensor(a!) x, str approximate='none') -> ()", tags);
  m.def("gelu_backward(Tensor grad, Tensor x, str approximate='none') -> Tensor", tags);
  m.def(
      "gelu_double_backward(Tensor grad_grad, Tensor grad, Tensor x, str approximate='none')"
      " -> (Tensor, Tensor)",
      tags);
  m.def("bias_gelu(Tensor x, Tensor bias, str approximate='none') -> Tensor", tags);
  m.def(
      "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, str approximate='none')"
      " -> (Tensor, Tensor)",
      tags);
  m.def("geglu(Tensor gate, Tensor value, str approximate='none') -> Tensor", tags);
  m.def(
      "geglu_backward(Tensor grad, Tensor gate, Tensor value, str approximate='none')"
      " -> (Tensor, Tensor)",
      tags);
  m.def("gelu_8bit(Tensor x, str approximate='none') -> (Tensor, Tensor)", tags);
  m.def("gelu_8bit_backward(Tensor grad, Tensor code) -> Tensor", tags);
  m.def("gelu_1bit(Tensor x, str approximate='none') -> (Tensor, Tensor)", tags);
  m.def(
      "gelu_1bit_backward(Tensor grad, Tensor value, Tensor code, str approximate='none')"
      " -> Tensor",
      tags);
}

TORCH_LIBRARY_IMPL(custom_gelu_ext, CPU, m) {
  implement<Cpu>(m);
}

}  // namespace custom_gelu

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Registers the operators in torch.ops.custom_gelu_ext, and has one of them itself.";
  // The same call as torch.ops.custom_gelu_ext.gelu, without the way through Python and a stack of
  // boxed values that torch.ops takes: for an eager call on a small tensor, which that delays.
  m.def(
      "gelu",
      [](const at::Tensor& x, std::string_view approximate) {
        using Gelu = at::Tensor(const at::Tensor&, c10::string_view);
        static const auto op = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("custom_gelu_ext::gelu", "")
                                   .typed<Gelu>();
        return op.call(x, approximate);
      },
      pybind11::call_guard<pybind11::gil_scoped_release>());
}
