// What each operation does with one element; the CPU's loop and the GPU's kernel around it are the
// same for all. Arithmetic is in Real (float for 16-bit elements), and only results are rounded.
#pragma once

#include "gelu_math.h"

namespace custom_gelu {

template <typename Precision, Mode kMode>
struct Gelu {
  using Real = typename Precision::Real;
  static constexpr int kInputs = 1, kOutputs = 1;
  static GELU_FN void run(const Real (&in)[1], Real (&out)[1]) {
    out[0] = gelu_value<Precision, kMode>(in[0]);
  }
};

template <typename Precision, Mode kMode>
struct GeluBackward {
  using Real = typename Precision::Real;
  static constexpr int kInputs = 2, kOutputs = 1;
  static GELU_FN void run(const Real (&in)[2], Real (&out)[1]) {
    const auto [grad, x] = in;
    out[0] = grad * gelu_derivative<Precision, kMode>(x);
  }
};

// The backward of GeluBackward, whose output's gradient is grad_grad.
template <typename Precision, Mode kMode>
struct GeluDoubleBackward {
  using Real = typename Precision::Real;
  static constexpr int kInputs = 3, kOutputs = 2;
  static GELU_FN void run(const Real (&in)[3], Real (&out)[2]) {
    const auto [grad_grad, grad, x] = in;
    out[0] = grad_grad * gelu_derivative<Precision, kMode>(x);
    out[1] = grad_grad * grad * gelu_second_derivative<Precision, kMode>(x);
  }
};

template <typename Precision, Mode kMode>
struct BiasGelu {
  using Real = typename Precision::Real;
  static constexpr int kInputs = 2, kOutputs = 1;
  static GELU_FN void run(const Real (&in)[2], Real (&out)[1]) {
    const auto [x, bias] = in;
    out[0] = gelu_value<Precision, kMode>(x + bias);
  }
};

template <typename Precision, Mode kMode>
struct Geglu {
  using Real = typename Precision::Real;
  static constexpr int kInputs = 2, kOutputs = 1;
  static GELU_FN void run(const Real (&in)[2], Real (&out)[1]) {
    const auto [gate, value] = in;
    out[0] = gelu_value<Precision, kMode>(gate) * value;
  }
};

template <typename Precision, Mode kMode>
struct GegluBackward {
  using Real = typename Precision::Real;
  static constexpr int kInputs = 3, kOutputs = 2;
  static GELU_FN void run(const Real (&in)[3], Real (&out)[2]) {
    const auto [grad, gate, value] = in;
    out[0] = grad * value * gelu_derivative<Precision, kMode>(gate);
    out[1] = grad * gelu_value<Precision, kMode>(gate);
  }
};

// Calls function.template operator()<Element's tag, Precision, mode>() for a type and a mode known
// only at run time. Each side has its own element types: Elements::Float16 and so on.
template <typename Elements, typename Function>
auto dispatch(Type type, Mode mode, Function&& function) {
  const bool tanh = mode == Mode::kTanh;
  using E = Elements;
  switch (type) {
    case Type::kFloat64:
      return tanh ? function.template operator()<typename E::Float64, Double, Mode::kTanh>()
                  : function.template operator()<typename E::Float64, Double, Mode::kExact>();
    case Type::kFloat16:
      return tanh ? function.template operator()<typename E::Float16, Lean, Mode::kTanh>()
                  : function.template operator()<typename E::Float16, Lean, Mode::kExact>();
    case Type::kBFloat16:
      return tanh ? function.template operator()<typename E::BFloat16, Lean, Mode::kTanh>()
                  : function.template operator()<typename E::BFloat16, Lean, Mode::kExact>();
    default:
      return tanh ? function.template operator()<typename E::Float32, Single, Mode::kTanh>()
                  : function.template operator()<typename E::Float32, Single, Mode::kExact>();
  }
}

}  // namespace custom_gelu
