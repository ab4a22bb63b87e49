// The operators' schemas; operators.py tells what each computes.
#pragma once

namespace custom_gelu {

inline constexpr const char* kSchemas[] = {
    "gelu(Tensor x, str approximate='none') -> Tensor",
    "gelu_(Tensor(a!) x, str approximate='none') -> ()",
    "gelu_backward(Tensor grad, Tensor x, str approximate='none') -> Tensor",
    "gelu_double_backward(Tensor grad_grad, Tensor grad, Tensor x, str approximate='none')"
    " -> (Tensor, Tensor)",
    "bias_gelu(Tensor x, Tensor bias, str approximate='none') -> Tensor",
    "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, str approximate='none')"
    " -> (Tensor, Tensor)",
    "geglu(Tensor gate, Tensor value, str approximate='none') -> Tensor",
    "geglu_backward(Tensor grad, Tensor gate, Tensor value, str approximate='none')"
    " -> (Tensor, Tensor)",
    "gelu_8bit(Tensor x, str approximate='none') -> (Tensor, Tensor)",
    "gelu_8bit_backward(Tensor grad, Tensor code) -> Tensor",
    "gelu_1bit(Tensor x, str approximate='none') -> (Tensor, Tensor)",
    "gelu_1bit_backward(Tensor grad, Tensor value, Tensor code, str approximate='none') -> Tensor",
};

}  // namespace custom_gelu
