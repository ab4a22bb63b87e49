// The operators under autograd: what is saved in forward, and what backward calls.
//
// A call with a gradient to record comes here first. It runs the operator again below autograd,
// and hangs a Node on the result, which the engine calls in backward. Python could do all of this
// (and does, for torch.func and forward mode: transforms.py), but takes longer than a small GELU.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

namespace custom_gelu {
namespace {

using at::Tensor;
using torch::autograd::variable_list;
using Approximate = c10::string_view;
using Pair = std::tuple<Tensor, Tensor>;

template <typename Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// From the gradient of an operator's output and its inputs to the gradients of the inputs.
using Formula = variable_list (*)(const Tensor& grad, const variable_list& inputs,
                                  Approximate approximate);

struct Recorded : torch::autograd::Node {
  const char* label;
  Formula formula;
  std::string approximate;
  std::vector<torch::autograd::SavedVariable> saved;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(saved.size());
    variable_list inputs;
    inputs.reserve(saved.size());
    for (const auto& each : saved) inputs.push_back(each.unpack());
    return formula(grads[0], inputs, approximate);
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& each : saved) each.reset_data();
  }
  std::string name() const override { return label; }
};

// torch holds nodes by std::shared_ptr up to 2.11 or so, and by its own intrusive_ptr later.
template <typename Pointer>
struct New;
template <typename Base>
struct New<std::shared_ptr<Base>> {
  template <typename Node>
  static std::shared_ptr<Node> node() {
    return {new Node, [](auto* each) { deleteNode(each); }};  // not recursive, as a plain delete is
  }
};
template <typename Base>
struct New<c10::intrusive_ptr<Base>> {
  template <typename Node>
  static c10::intrusive_ptr<Node> node() {
    return c10::make_intrusive<Node>();
  }
};

void refuse_forward_mode(const Tensor& input) {
  TORCH_CHECK_NOT_IMPLEMENTED(!input._fw_grad(0).defined(),
                              "torch.ops.custom_gelu_ext has no forward mode: call the functions "
                              "of custom_gelu_ext, which have");
}

// Runs an operator of the given inputs below autograd, and records it if need be.
template <typename Op, typename... Inputs>
Tensor record(const Op& op, const char* label, Formula formula, c10::DispatchKeySet keys,
              Approximate approximate, const Inputs&... inputs) {
  (refuse_forward_mode(inputs), ...);
  using NewNode = New<decltype(torch::autograd::Edge::function)>;
  decltype(NewNode::template node<Recorded>()) node;
  if (torch::autograd::compute_requires_grad(inputs...)) {
    node = NewNode::template node<Recorded>();
    node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
    node->label = label;
    node->formula = formula;
    node->approximate = std::string(approximate);
    node->saved.reserve(sizeof...(inputs));
    (node->saved.emplace_back(inputs, /*is_output=*/false), ...);
  }
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.redispatch(keys & c10::after_autograd_keyset, inputs..., approximate);
  }();
  if (node) torch::autograd::set_history(out, node);
  return out;
}

// Where the derivative of a derivative is wanted, the operator call is recorded in its turn;
// otherwise it need not even pass through autograd again.
template <typename Op, typename... Arguments>
auto call(const Op& op, Arguments&&... arguments) {
  if (at::GradMode::is_enabled()) return op.call(arguments...);
  const at::AutoDispatchBelowAutograd guard;
  return op.call(arguments...);
}

variable_list listed(Pair pair) {
  return {std::get<0>(pair), std::get<1>(pair)};
}

variable_list backward_of_gelu(const Tensor& grad, const variable_list& in, Approximate mode) {
  static const auto op =
      find<Tensor(const Tensor&, const Tensor&, Approximate)>("custom_gelu_ext::gelu_backward");
  return {call(op, grad, in[0], mode)};
}

variable_list backward_of_gelu_backward(const Tensor& grad, const variable_list& in,
                                        Approximate mode) {
  static const auto op = find<Pair(const Tensor&, const Tensor&, const Tensor&, Approximate)>(
      "custom_gelu_ext::gelu_double_backward");
  return listed(call(op, grad, in[0], in[1], mode));
}

variable_list backward_of_bias_gelu(const Tensor& grad, const variable_list& in, Approximate mode) {
  static const auto op = find<Pair(const Tensor&, const Tensor&, const Tensor&, Approximate)>(
      "custom_gelu_ext::bias_gelu_backward");
  return listed(call(op, grad, in[0], in[1], mode));
}

variable_list backward_of_geglu(const Tensor& grad, const variable_list& in, Approximate mode) {
  static const auto op = find<Pair(const Tensor&, const Tensor&, const Tensor&, Approximate)>(
      "custom_gelu_ext::geglu_backward");
  return listed(call(op, grad, in[0], in[1], mode));
}

Tensor gelu(c10::DispatchKeySet keys, const Tensor& x, Approximate approximate) {
  static const auto op = find<Tensor(const Tensor&, Approximate)>("custom_gelu_ext::gelu");
  return record(op, "GeluBackward", backward_of_gelu, keys, approximate, x);
}

using Binary = Tensor(const Tensor&, const Tensor&, Approximate);

Tensor gelu_backward(c10::DispatchKeySet keys, const Tensor& grad, const Tensor& x,
                     Approximate approximate) {
  static const auto op = find<Binary>("custom_gelu_ext::gelu_backward");
  return record(op, "GeluBackwardBackward", backward_of_gelu_backward, keys, approximate, grad, x);
}

Tensor bias_gelu(c10::DispatchKeySet keys, const Tensor& x, const Tensor& bias,
                 Approximate approximate) {
  static const auto op = find<Binary>("custom_gelu_ext::bias_gelu");
  return record(op, "BiasGeluBackward", backward_of_bias_gelu, keys, approximate, x, bias);
}

Tensor geglu(c10::DispatchKeySet keys, const Tensor& gate, const Tensor& value,
             Approximate approximate) {
  static const auto op = find<Binary>("custom_gelu_ext::geglu");
  return record(op, "GegluBackward", backward_of_geglu, keys, approximate, gate, value);
}

}  // namespace

TORCH_LIBRARY_IMPL(custom_gelu_ext, Autograd, m) {
  m.impl("gelu", TORCH_FN(gelu));
  m.impl("gelu_backward", TORCH_FN(gelu_backward));
  m.impl("bias_gelu", TORCH_FN(bias_gelu));
  m.impl("geglu", TORCH_FN(geglu));
}

}  // namespace custom_gelu
