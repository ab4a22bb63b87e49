// The operators' schemas, and their CPU implementations. Importing the module (the last lines) runs
// the static registrations above it; after that torch.ops.custom_gelu_ext has the operators.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "../cpu/kernels.h"
#include "../schemas.h"
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
  for (const char* schema : kSchemas) m.def(schema, {at::Tag::pt2_compliant_tag});
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
