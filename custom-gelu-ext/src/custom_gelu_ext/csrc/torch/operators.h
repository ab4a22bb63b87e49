// The operators on tensors, written once for every Backend, which has
//     Backend::kKey                           its dispatch key;
//     Backend::Guard guard(device)            makes the device current;
//     Backend::elementwise(op, operands)      runs a kernel;
//     Backend::bias_gelu_backward(operands, x)
//     Backend::encode(coded), Backend::decode(coded)
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>

#include <tuple>

#include "operands.h"

namespace custom_gelu {

template <typename Backend>
struct Operators {
  using Tensor = at::Tensor;
  using Guard = typename Backend::Guard;
  using Approximate = c10::string_view;

  static Tensor gelu(const Tensor& x, Approximate approximate) {
    const Mode mode = mode_of(approximate);
    type_of(x);
    const Guard guard(x.device());
    Tensor out = like(x);
    Backend::elementwise(Op::kGelu, as_one_row(mode, {in_layout_of(x, out)}, {out}));
    return out;
  }

  static void gelu_(const Tensor& x, Approximate approximate) {
    const Mode mode = mode_of(approximate);
    type_of(x);
    const Guard guard(x.device());
    if (x.is_non_overlapping_and_dense()) {
      Backend::elementwise(Op::kGelu, as_one_row(mode, {x}, {x}));
    } else {
      x.copy_(gelu(x, approximate));
    }
  }

  static Tensor gelu_backward(const Tensor& grad, const Tensor& x, Approximate approximate) {
    check_alike("gelu_backward: grad", grad, "x", x);
    const Mode mode = mode_of(approximate);
    type_of(x);
    const Guard guard(x.device());
    Tensor out = like(x);
    Backend::elementwise(Op::kGeluBackward,
                         as_one_row(mode, {in_layout_of(grad, out), in_layout_of(x, out)}, {out}));
    return out;
  }

  static std::tuple<Tensor, Tensor> gelu_double_backward(const Tensor& grad_grad,
                                                         const Tensor& grad, const Tensor& x,
                                                         Approximate approximate) {
    check_alike("gelu_double_backward: grad_grad", grad_grad, "x", x);
    check_alike("gelu_double_backward: grad", grad, "x", x);
    const Mode mode = mode_of(approximate);
    type_of(x);
    const Guard guard(x.device());
    Tensor to_grad = at::empty_like(x), to_x = at::empty_like(x);
    Backend::elementwise(
        Op::kGeluDoubleBackward,
        as_one_row(mode,
                   {in_layout_of(grad_grad, to_x), in_layout_of(grad, to_x), in_layout_of(x, to_x)},
                   {to_grad, to_x}));
    return {to_grad, to_x};
  }

  static Tensor bias_gelu(const Tensor& x, const Tensor& bias, Approximate approximate) {
    check_bias(x, bias);
    const Mode mode = mode_of(approximate);
    type_of(x);
    const Guard guard(x.device());
    Tensor out = at::empty(x.sizes(), x.options());
    Backend::elementwise(Op::kBiasGelu, as_rows(mode, {with_rows(x), bias.contiguous()}, {out}));
    return out;
  }

  static std::tuple<Tensor, Tensor> bias_gelu_backward(const Tensor& grad, const Tensor& x,
                                                       const Tensor& bias,
                                                       Approximate approximate) {
    check_bias(x, bias);
    check_alike("bias_gelu_backward: grad", grad, "x", x);
    const Mode mode = mode_of(approximate);
    type_of(x);
    const Guard guard(x.device());
    Tensor grad_x = at::empty(x.sizes(), x.options());
    Tensor grad_bias = at::empty(bias.sizes(), bias.options());
    Backend::bias_gelu_backward(
        as_rows(mode, {with_rows(grad), with_rows(x), bias.contiguous()}, {grad_x, grad_bias}), x);
    return {grad_x, grad_bias};
  }

  static Tensor geglu(const Tensor& gate, const Tensor& value, Approximate approximate) {
    check_alike("geglu: value", value, "gate", gate);
    const Mode mode = mode_of(approximate);
    type_of(gate);
    const Guard guard(gate.device());
    Tensor out = at::empty_like(gate);
    // The halves of one tensor, x.chunk(2, -1), are rows with gaps: read where they are.
    const bool rows = out.is_contiguous() && rows_of(gate) && rows_of(value);
    Backend::elementwise(
        Op::kGeglu,
        rows ? as_rows(mode, {gate, value}, {out})
             : as_one_row(mode, {in_layout_of(gate, out), in_layout_of(value, out)}, {out}));
    return out;
  }

  static std::tuple<Tensor, Tensor> geglu_backward(const Tensor& grad, const Tensor& gate,
                                                   const Tensor& value, Approximate approximate) {
    check_alike("geglu_backward: value", value, "gate", gate);
    check_alike("geglu_backward: grad", grad, "gate", gate);
    const Mode mode = mode_of(approximate);
    type_of(gate);
    const Guard guard(gate.device());
    Tensor to_gate = at::empty_like(gate), to_value = at::empty_like(gate);
    const bool rows = to_gate.is_contiguous() && rows_of(grad) && rows_of(gate) && rows_of(value);
    Backend::elementwise(Op::kGegluBackward,
                         rows
                             ? as_rows(mode, {grad, gate, value}, {to_gate, to_value})
                             : as_one_row(mode,
                                          {in_layout_of(grad, to_gate), in_layout_of(gate, to_gate),
                                           in_layout_of(value, to_gate)},
                                          {to_gate, to_value}));
    return {to_gate, to_value};
  }

  static std::tuple<Tensor, Tensor> gelu_8bit(const Tensor& x, Approximate approximate) {
    return encode(Code::kEight, x, approximate);
  }
  static std::tuple<Tensor, Tensor> gelu_1bit(const Tensor& x, Approximate approximate) {
    return encode(Code::kOne, x, approximate);
  }
  static Tensor gelu_8bit_backward(const Tensor& grad, const Tensor& code) {
    return decode(Code::kEight, grad, nullptr, code, Mode::kExact);
  }
  static Tensor gelu_1bit_backward(const Tensor& grad, const Tensor& value, const Tensor& code,
                                   Approximate approximate) {
    check_alike("gelu_1bit_backward: grad", grad, "value", value);
    const Tensor packed = value.contiguous();
    return decode(Code::kOne, grad, &packed, code, mode_of(approximate));
  }

 private:
  static int64_t code_size(Code code, int64_t count) {
    return code == Code::kEight ? count : (count + 7) / 8;
  }

  static std::tuple<Tensor, Tensor> encode(Code code, const Tensor& x, Approximate approximate) {
    const Mode mode = mode_of(approximate);
    const Type type = type_of(x);
    const Guard guard(x.device());
    const Tensor source = x.contiguous();
    Tensor out = at::empty(x.sizes(), x.options());
    Tensor codes = at::empty({code_size(code, x.numel())}, x.options().dtype(at::kByte));
    Backend::encode(Coded{type, mode, code, x.numel(), source.const_data_ptr(),
                          out.mutable_data_ptr(), nullptr, codes.mutable_data_ptr<uint8_t>()});
    return {out, codes};
  }

  static Tensor decode(Code code, const Tensor& grad, const Tensor* value, const Tensor& codes,
                       Mode mode) {
    const Type type = type_of(grad);
    TORCH_CHECK_VALUE(
        codes.scalar_type() == at::kByte && codes.dim() == 1 && codes.is_contiguous() &&
            codes.size(0) == code_size(code, grad.numel()) && codes.device() == grad.device(),
        "gelu: the code must be uint8 [", std::to_string(code_size(code, grad.numel())),
        "] on grad's device, as forward returned it; got ", name_of(codes.scalar_type()), " ",
        shape_of(codes));
    const Guard guard(grad.device());
    const Tensor source = grad.contiguous();
    Tensor out = at::empty(grad.sizes(), grad.options());
    Backend::decode(Coded{type, mode, code, grad.numel(), source.const_data_ptr(),
                          out.mutable_data_ptr(), value ? value->const_data_ptr() : nullptr,
                          const_cast<uint8_t*>(codes.const_data_ptr<uint8_t>())});
    return out;
  }

  // empty_like(x), where x has no gaps without the way through the dispatcher, which costs a small
  // tensor more than the memory does.
  static Tensor like(const Tensor& x) {
    if (!x.is_non_overlapping_and_dense()) return at::empty_like(x);
    return at::detail::empty_strided_generic(x.sizes(), x.strides(),
                                             c10::GetAllocator(x.device().type()),
                                             c10::DispatchKeySet(Backend::kKey), x.scalar_type());
  }
  static Tensor with_rows(const Tensor& x) { return rows_of(x) ? x : x.contiguous(); }
};

// Registers the operators for a dispatch key.
template <typename Backend>
void implement(torch::Library& m) {
  using O = Operators<Backend>;
  m.impl("gelu", O::gelu);
  m.impl("gelu_", O::gelu_);
  m.impl("gelu_backward", O::gelu_backward);
  m.impl("gelu_double_backward", O::gelu_double_backward);
  m.impl("bias_gelu", O::bias_gelu);
  m.impl("bias_gelu_backward", O::bias_gelu_backward);
  m.impl("geglu", O::geglu);
  m.impl("geglu_backward", O::geglu_backward);
  m.impl("gelu_8bit", O::gelu_8bit);
  m.impl("gelu_8bit_backward", O::gelu_8bit_backward);
  m.impl("gelu_1bit", O::gelu_1bit);
  m.impl("gelu_1bit_backward", O::gelu_1bit_backward);
}

}  // namespace custom_gelu
