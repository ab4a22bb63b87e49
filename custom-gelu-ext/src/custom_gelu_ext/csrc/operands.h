// What the CPU and the CUDA binding share: checking tensors and laying them out for the kernels,
// which see nothing but pointers and a count.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <string>
#include <string_view>

#include "kinds.h"

namespace custom_gelu {

// "[3, 4]". Not through the shape's own operator<<: on one machine (GCC 13.3, torch 2.11) checks
// whose message printed a shape crashed, those without did not. The cause is not known.
inline std::string shape_of(const at::Tensor& tensor) {
  std::string text = "[";
  for (const int64_t size : tensor.sizes()) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

inline Mode mode_of(std::string_view approximate) {
  if (approximate == "none") return Mode::kExact;
  TORCH_CHECK_VALUE(approximate == "tanh", "gelu: approximate must be 'none' or 'tanh', got '",
                    approximate, "'");
  return Mode::kTanh;
}

inline Type type_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Type::kFloat32;
    case at::kDouble:
      return Type::kFloat64;
    case at::kHalf:
      return Type::kFloat16;
    case at::kBFloat16:
      return Type::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, "gelu: dtype must be float32, float64, float16 or bfloat16, got ",
                       x.scalar_type(), "; convert first: x.float()");
  }
}

// GELU is elementwise, so the order in which elements are visited does not matter as long as all
// tensors agree: a tensor without gaps or overlaps is one run of numel elements in memory, whatever
// its strides (contiguous, channels-last, transposed), and the result gets the same strides.
// Anything else (a slice with gaps, an expanded gradient) is first copied into the result's layout.
inline at::Tensor in_layout_of(const at::Tensor& tensor, const at::Tensor& out) {
  if (tensor.strides() == out.strides() && tensor.is_non_overlapping_and_dense()) return tensor;
  at::Tensor copy = at::empty_like(out);
  copy.copy_(tensor);
  return copy;
}

inline void check_gradient(const at::Tensor& grad, const at::Tensor& x) {
  TORCH_CHECK_VALUE(grad.sizes() == x.sizes(), "gelu_backward: grad's shape ", shape_of(grad),
                    " must be x's, ", shape_of(x));
  TORCH_CHECK_TYPE(grad.scalar_type() == x.scalar_type(), "gelu_backward: grad's dtype ",
                   grad.scalar_type(), " must be x's, ", x.scalar_type());
  TORCH_CHECK_VALUE(grad.device() == x.device(), "gelu_backward: grad is on ", grad.device(),
                    " but x on ", x.device());
}

}  // namespace custom_gelu
