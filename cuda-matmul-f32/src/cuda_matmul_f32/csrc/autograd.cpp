// Derivatives of the op: each is a product again, by the same rung, so it has derivatives in turn.
//
// In C++ and not by torch.library.register_autograd, whose Python runs on each call, also where no
// gradient is wanted: that took 4 of 5 microseconds of a small product.
#include <ATen/FuncTorchTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <memory>
#include <string>
#include <utility>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor product(const at::Tensor& a, const at::Tensor& b, const std::string& kernel) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, std::string);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("cuda_matmul_f32::matmul", "")
                             .typed<Signature>();
  return op.call(a, b, kernel);
}

// To whatever comes below autograd in the dispatcher's order: the kernels, or tracing, or vmap.
at::Tensor product_below(const at::Tensor& a, const at::Tensor& b, const std::string& kernel) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return product(a, b, kernel);
}

struct Matmul : torch::autograd::Function<Matmul> {
  static constexpr bool is_traceable = true;  // compiled autograd may look into backward

  // Notes down what backward needs for c, which is a times b. (A pointer, or c would be an input.)
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& a, const at::Tensor& b,
                            const std::string& kernel, const at::Tensor* c) {
    // Each input is needed for the other one's gradient only.
    ctx->save_for_backward(
        {b.requires_grad() ? a : at::Tensor(), a.requires_grad() ? b : at::Tensor()});
    ctx->saved_data["kernel"] = kernel;
    return *c;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &a = saved[0], &b = saved[1], &grad = grads[0];
    const std::string kernel = ctx->saved_data["kernel"].toStringRef();
    // C = A B, so dA = dC B^T and dB = A^T dC. The transposes are views: kernels read any strides.
    const bool for_a = grad.defined() && ctx->needs_input_grad(0);
    const bool for_b = grad.defined() && ctx->needs_input_grad(1);
    return {for_a ? product(grad, b.mT(), kernel) : at::Tensor(),
            for_b ? product(a.mT(), grad, kernel) : at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// torch.func's transforms refuse a C++ Function, because one that computes in forward() would do so
// on the wrong level. Ours computes nothing there; so that it may run, the levels are out of sight.
struct OutOfFunctorchsSight {
  std::unique_ptr<at::functorch::FuncTorchTLSBase> levels =
      std::move(at::functorch::functorchTLSAccessor());
  ~OutOfFunctorchsSight() { at::functorch::functorchTLSAccessor() = std::move(levels); }
};

bool wants_gradient(const at::Tensor& x) {
  return x.requires_grad() && at::GradMode::is_enabled();
}

at::Tensor differentiable(const at::Tensor& a, const at::Tensor& b, const std::string& kernel) {
  const at::Tensor c = product_below(a, b, kernel);
  if (!wants_gradient(a) && !wants_gradient(b)) return c;
  const OutOfFunctorchsSight guard;
  return Matmul::apply(a, b, kernel, &c);
}

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b, std::string kernel) {
  const at::Tensor &a_tangent = a._fw_grad(0), &b_tangent = b._fw_grad(0);
  if (!a_tangent.defined() && !b_tangent.defined()) return differentiable(a, b, kernel);

  // Forward mode: d(A B) = dA B + A dB.
  const at::Tensor a_primal = a._fw_primal(0), b_primal = b._fw_primal(0);
  const at::Tensor c = differentiable(a_primal, b_primal, kernel);
  at::Tensor tangent;
  if (a_tangent.defined()) tangent = product(a_tangent, b_primal, kernel);
  if (b_tangent.defined()) {
    const at::Tensor other = product(a_primal, b_tangent, kernel);
    tangent = tangent.defined() ? tangent.add(other) : other;
  }
  c._set_fw_grad(tangent, 0, /*is_inplace_op=*/false);
  return c;
}

void matmul_out(const at::Tensor& a, const at::Tensor& b, std::string kernel, at::Tensor& out) {
  TORCH_CHECK(!wants_gradient(a) && !wants_gradient(b) && !wants_gradient(out),
              "out= does not support automatic differentiation, but a, b or out requires grad: "
              "leave out= away, or use torch.no_grad()");
  TORCH_CHECK(!a._fw_grad(0).defined() && !b._fw_grad(0).defined() && !out._fw_grad(0).defined(),
              "out= does not support forward-mode automatic differentiation: leave it away");
  using Signature = void(const at::Tensor&, const at::Tensor&, std::string, at::Tensor&);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("cuda_matmul_f32::matmul", "out")
                             .typed<Signature>();
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.call(a, b, kernel, out);
  }
  torch::autograd::impl::bump_version(out);
}

}  // namespace

TORCH_LIBRARY_IMPL(cuda_matmul_f32, Autograd, library) {
  library.impl("matmul", matmul);
  library.impl("matmul.out", matmul_out);
}
