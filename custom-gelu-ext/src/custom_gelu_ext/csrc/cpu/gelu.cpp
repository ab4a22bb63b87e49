// The CPU kernels: plain loops over gelu_math.h that the compiler turns into vector instructions.
#include "gelu.h"

#include <ATen/Parallel.h>

#include "../gelu_math.h"
#include "../storage.h"

namespace custom_gelu::cpu {
namespace {

// Elements a thread takes at least: some 10 microseconds of work, more than waking it costs.
constexpr int64_t kGrain = 16384;

template <typename Precision, Mode kMode, typename Element>
void forward_loop(const void* x_data, void* out_data, int64_t n) {
  const auto* x = static_cast<const Element*>(x_data);
  auto* out = static_cast<Element*>(out_data);
  at::parallel_for(0, n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) store(out + i, gelu_value<Precision, kMode>(load(x + i)));
  });
}

template <typename Precision, Mode kMode, typename Element>
void backward_loop(const void* grad_data, const void* x_data, void* out_data, int64_t n) {
  const auto* grad = static_cast<const Element*>(grad_data);
  const auto* x = static_cast<const Element*>(x_data);
  auto* out = static_cast<Element*>(out_data);
  at::parallel_for(0, n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      store(out + i, load(grad + i) * gelu_derivative<Precision, kMode>(load(x + i)));
    }
  });
}

template <Mode kMode>
void forward(Type type, const void* x, void* out, int64_t n) {
  switch (type) {
    case Type::kFloat32:
      return forward_loop<Single, kMode, float>(x, out, n);
    case Type::kFloat64:
      return forward_loop<Double, kMode, double>(x, out, n);
    case Type::kFloat16:
      return forward_loop<Lean, kMode, Float16Bits>(x, out, n);
    case Type::kBFloat16:
      return forward_loop<Lean, kMode, BFloat16Bits>(x, out, n);
  }
}

template <Mode kMode>
void backward(Type type, const void* grad, const void* x, void* out, int64_t n) {
  switch (type) {
    case Type::kFloat32:
      return backward_loop<Single, kMode, float>(grad, x, out, n);
    case Type::kFloat64:
      return backward_loop<Double, kMode, double>(grad, x, out, n);
    case Type::kFloat16:
      return backward_loop<Lean, kMode, Float16Bits>(grad, x, out, n);
    case Type::kBFloat16:
      return backward_loop<Lean, kMode, BFloat16Bits>(grad, x, out, n);
  }
}

}  // namespace

void gelu(Type type, Mode mode, const void* x, void* out, int64_t n) {
  mode == Mode::kExact ? forward<Mode::kExact>(type, x, out, n)
                       : forward<Mode::kTanh>(type, x, out, n);
}

void gelu_backward(Type type, Mode mode, const void* grad, const void* x, void* out, int64_t n) {
  mode == Mode::kExact ? backward<Mode::kExact>(type, grad, x, out, n)
                       : backward<Mode::kTanh>(type, grad, x, out, n);
}

}  // namespace custom_gelu::cpu
