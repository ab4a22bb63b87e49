// What stands between a step's matrix products, each as one pass over memory. With one sequence
// these small operators cost more in calls than in arithmetic: torch needs about twenty a layer.
//
// Every token's row is computed by itself, in one fixed order.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

#include "lanes.h"

namespace mini_llm_server {
namespace {

template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int64_t kGrain = 32768;  // numbers that are worth waking a thread for

template <typename F>
void for_rows(int64_t rows, int64_t width, F work) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) work(row);
  });
}

// x += delta in place; returns x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).
template <typename T>
void add_rms_norm(T* x, const T* delta, const T* weight, T* out, int64_t N, int64_t E, double eps) {
  using A = Arithmetic<T>;
  for_rows(N, E, [=](int64_t n) {
    T* const row = x + n * E;
    Lanes<A> squares = {};
    int64_t e = 0;
    for (; e + kLanes <= E; e += kLanes) {
      Lanes<A> value = load(row + e);
      if (delta != nullptr) {
        value += load(delta + n * E + e);
        for (int64_t i = 0; i < kLanes; ++i) row[e + i] = static_cast<T>(value[i]);
        value = load(row + e);  // as rounded, where T is narrow
      }
      squares += value * value;
    }
    A total = sum<A>(squares);
    for (; e < E; ++e) {
      if (delta != nullptr) row[e] = static_cast<T>(A(row[e]) + A(delta[n * E + e]));
      total += A(row[e]) * A(row[e]);
    }
    const A scale = A(1) / std::sqrt(total / static_cast<A>(E) + static_cast<A>(eps));
    T* const target = out + n * E;
    for (e = 0; e < E; ++e) {
      target[e] = static_cast<T>(A(static_cast<T>(A(row[e]) * scale)) * A(weight[e]));
    }
  });
}

// silu(gate) * up, where a row of gate_up holds gate and then up.
template <typename T>
void silu_mul(const T* gate_up, T* out, int64_t N, int64_t F) {
  using A = Arithmetic<T>;
  for_rows(N, F, [=](int64_t n) {
    const T* const gate = gate_up + n * 2 * F;
    const T* const up = gate + F;
    T* const target = out + n * F;
    for (int64_t f = 0; f < F; f += kLanes) {
      const int64_t count = std::min(kLanes, F - f);
      const bool whole = count == kLanes;
      const Lanes<A> g = whole ? load(gate + f) : load_some(gate + f, count);
      const Lanes<A> u = whole ? load(up + f) : load_some(up + f, count);
      // The logistic function through exp of what is not positive, which cannot overflow.
      const Lanes<A> e = exp_nonpositive(g < Lanes<A>{} ? g : -g);
      const Lanes<A> value = g * (g < Lanes<A>{} ? e : all(A(1))) / (e + A(1)) * u;
      for (int64_t i = 0; i < count; ++i) target[f + i] = static_cast<T>(value[i]);
    }
  });
}

// Rotary positions in place: (a, b) at (d, d + D / 2) becomes (a cos + b sin, b cos' + a sin'),
// with the rotation's sign in the table of sines.
template <typename T>
void rotate(T* x, int64_t x_row, const T* cos, const T* sin, int64_t N, int64_t heads, int64_t D) {
  using A = Arithmetic<T>;
  const int64_t half = D / 2;
  for_rows(N, heads * D, [=](int64_t n) {
    const T* const c = cos + n * D;
    const T* const s = sin + n * D;
    for (int64_t head = 0; head < heads; ++head) {
      T* const first = x + n * x_row + head * D;
      T* const second = first + half;
      for (int64_t d = 0; d < half; ++d) {
        const A a = first[d];
        const A b = second[d];
        first[d] = static_cast<T>(a * A(c[d]) + b * A(s[d]));
        second[d] = static_cast<T>(b * A(c[half + d]) + a * A(s[half + d]));
      }
    }
  });
}

template <typename F>
void dispatch(at::ScalarType type, F work) {
  switch (type) {
    case at::kFloat:
      return work(float{});
    case at::kDouble:
      return work(double{});
    case at::kBFloat16:
      return work(at::BFloat16{});
    default:
      TORCH_CHECK(false, "type ", type, " is not supported");
  }
}

at::Tensor add_rms_norm_op(at::Tensor x, const std::optional<at::Tensor>& delta,
                           const at::Tensor& weight, double eps) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && weight.is_contiguous(), "x is [N, E], dense");
  TORCH_CHECK(weight.numel() == x.size(1),
              "weight has " + std::to_string(weight.numel()) + " of " + std::to_string(x.size(1)));
  TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "x and weight have different types");
  if (delta) {
    TORCH_CHECK(delta->sizes() == x.sizes() && delta->is_contiguous(), "delta is not like x");
    TORCH_CHECK(delta->scalar_type() == x.scalar_type(), "x and delta have different types");
  }
  at::Tensor out = x.new_empty(x.sizes());
  dispatch(x.scalar_type(), [&](auto kind) {
    using T = decltype(kind);
    add_rms_norm<T>(x.mutable_data_ptr<T>(), delta ? delta->const_data_ptr<T>() : nullptr,
                    weight.const_data_ptr<T>(), out.mutable_data_ptr<T>(), x.size(0), x.size(1),
                    eps);
  });
  return out;
}

at::Tensor silu_mul_op(const at::Tensor& gate_up) {
  TORCH_CHECK(gate_up.dim() == 2 && gate_up.is_contiguous(), "gate_up is [N, 2 F], dense");
  at::Tensor out = gate_up.new_empty({gate_up.size(0), gate_up.size(1) / 2});
  dispatch(gate_up.scalar_type(), [&](auto kind) {
    using T = decltype(kind);
    silu_mul<T>(gate_up.const_data_ptr<T>(), out.mutable_data_ptr<T>(), out.size(0), out.size(1));
  });
  return out;
}

void rotate_op(at::Tensor x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t D = x.size(2);
  TORCH_CHECK(x.dim() == 3 && x.stride(1) == D && x.stride(2) == 1, "heads are not dense");
  for (const at::Tensor& table : {cos, sin}) {
    TORCH_CHECK(table.is_contiguous() && table.numel() == x.size(0) * D, "a row for each token");
    TORCH_CHECK(table.scalar_type() == x.scalar_type(), "x and table have different types");
  }
  dispatch(x.scalar_type(), [&](auto kind) {
    using T = decltype(kind);
    rotate<T>(x.mutable_data_ptr<T>(), x.stride(0), cos.const_data_ptr<T>(),
              sin.const_data_ptr<T>(), x.size(0), x.size(1), D);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mini_llm_server, m) {
  m.def("add_rms_norm_(Tensor(a!) x, Tensor? delta, Tensor weight, float eps) -> Tensor");
  m.def("silu_mul(Tensor gate_up) -> Tensor");
  m.def("rotate_(Tensor(a!) x, Tensor cos, Tensor sin) -> ()");
}

TORCH_LIBRARY_IMPL(mini_llm_server, CPU, m) {
  m.impl("add_rms_norm_", add_rms_norm_op);
  m.impl("silu_mul", silu_mul_op);
  m.impl("rotate_", rotate_op);
}

}  // namespace mini_llm_server
