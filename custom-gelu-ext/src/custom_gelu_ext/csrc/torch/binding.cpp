// The operators' schemas, and their CPU implementations. Importing the module (the last lines) runs
// the static registrations above it; after that torch.ops.custom_gelu_ext has the operators.
#include <ATen/Parallel.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
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
  static constexpr auto kKey = c10::DispatchKey::CPU;
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

#ifdef WITH_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

// Whether a call on this Python object is one that functional.py would find nothing to say about: a
// plain tensor that the kernels take, no torch.func, no forward mode, nothing that overrides
// torch's functions.
bool is_ordinary(pybind11::handle object) {
  if (!THPVariable_CheckExact(object.ptr()) || at::impl::torch_function_mode_enabled())
    return false;
  const at::Tensor& x = THPVariable_Unpack(object.ptr());
  const auto type = x.scalar_type();
  using Key = c10::DispatchKey;
  constexpr c10::DispatchKeySet kTransforms(
      {Key::FuncTorchDynamicLayerFrontMode, Key::FuncTorchDynamicLayerBackMode});
  return (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf ||
          type == at::kDouble) &&
         x.layout() == at::kStrided && (x.is_cpu() || (kHasCuda && x.is_cuda())) &&
         !c10::impl::tls_local_dispatch_key_set().included_.has_any(kTransforms) &&
         torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr;
}

// torch.ops.custom_gelu_ext.gelu without the way through Python's checks and a stack of boxed
// values, for an eager call on a small tensor, which these delay. Or None, and the call has to go
// the long way, where it is found what is wrong or special.
std::optional<at::Tensor> gelu_if_ordinary(pybind11::handle x, pybind11::handle approximate) {
  using Gelu = at::Tensor(const at::Tensor&, c10::string_view);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("custom_gelu_ext::gelu", "").typed<Gelu>();
  if (!is_ordinary(x) || !pybind11::isinstance<pybind11::str>(approximate)) return std::nullopt;
  const auto mode = approximate.cast<std::string_view>();
  if (mode != "none" && mode != "tanh") return std::nullopt;
  const pybind11::gil_scoped_release no_gil;
  return op.call(THPVariable_Unpack(x.ptr()), mode);
}

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
  m.def("gelu", custom_gelu::gelu_if_ordinary);
}
