// From tensors to Operands: checks, and the layouts in which the kernels can read and write.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "../kinds.h"

namespace custom_gelu {

// "[3, 4]". Not through the shape's own operator<<: on one machine (GCC 13.3, torch 2.11) a check
// whose message got a number through c10's stream crashed, each of those that got none did not. The
// cause is not known; numbers in messages are made strings first, here and elsewhere.
inline std::string shape_of(const at::Tensor& tensor) {
  std::string text = "[";
  for (const int64_t size : tensor.sizes()) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

// "torch.float32", as Python's messages have it.
inline std::string name_of(at::ScalarType type) {
  return "torch." + std::string(c10::getDtypeNames(type).first);
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
                       name_of(x.scalar_type()), "; convert first: x.float()");
  }
}

// `one` must have `other`'s dtype and device; `what` and `whose` name the two in the message.
inline void check_kind(const char* what, const at::Tensor& one, const char* whose,
                       const at::Tensor& other) {
  TORCH_CHECK_TYPE(one.scalar_type() == other.scalar_type(), what, "'s dtype ",
                   name_of(one.scalar_type()), " must be ", whose, "'s, ",
                   name_of(other.scalar_type()));
  TORCH_CHECK_VALUE(one.device() == other.device(), what, " is on ", one.device(), " but ", whose,
                    " on ", other.device());
}

inline void check_alike(const char* what, const at::Tensor& one, const char* whose,
                        const at::Tensor& other) {
  TORCH_CHECK_VALUE(one.sizes() == other.sizes(), what, "'s shape ", shape_of(one), " must be ",
                    whose, "'s, ", shape_of(other));
  check_kind(what, one, whose, other);
}

inline void check_bias(const at::Tensor& x, const at::Tensor& bias) {
  TORCH_CHECK_VALUE(x.dim() >= 1 && bias.dim() == 1 && bias.size(0) == x.size(-1),
                    "bias_gelu: bias's shape ", shape_of(bias),
                    " must be [C] where x's last dimension is C; x's shape is ", shape_of(x));
  check_kind("bias_gelu: bias", bias, "x", x);
}

// A tensor as rows of its last dimension, if there is one stride from each row to the next.
struct Rows {
  int64_t count = 1, width = 1, stride = 0;
};
inline std::optional<Rows> rows_of(const at::Tensor& tensor) {
  Rows rows;
  if (tensor.dim() == 0) return rows;
  if (tensor.numel() == 0) return Rows{0, tensor.size(-1), 0};  // whatever its strides
  rows.width = tensor.size(-1);
  if (tensor.stride(-1) != 1 && rows.width > 1) return std::nullopt;
  for (int64_t d = tensor.dim() - 2; d >= 0; --d) {
    if (tensor.size(d) == 1) continue;
    if (rows.count == 1) rows.stride = tensor.stride(d);
    if (rows.count > 1 && tensor.stride(d) != rows.stride * rows.count) return std::nullopt;
    rows.count *= tensor.size(d);
  }
  return rows;
}

// The tensor itself if its elements lie in memory as out's do, else a copy that does. GELU is
// elementwise, so the order in which elements are visited does not matter as long as all tensors
// agree: one without gaps or overlaps is a single row of numel elements, whatever its strides
// (contiguous, channels-last, transposed). `out` is such a one. The stride of a dimension of size 1
// says nothing of where an element lies.
inline at::Tensor in_layout_of(const at::Tensor& tensor, const at::Tensor& out) {
  const at::IntArrayRef sizes = out.sizes(), one = tensor.strides(), other = out.strides();
  bool same = true;
  for (size_t d = 0; d < sizes.size(); ++d) same &= sizes[d] == 1 || one[d] == other[d];
  if (same) return tensor;
  at::Tensor copy = at::empty_like(out);
  copy.copy_(tensor);
  return copy;
}

// Operands of a single row, from tensors of one layout without gaps.
inline Operands as_one_row(Mode mode, std::initializer_list<at::Tensor> inputs,
                           std::initializer_list<at::Tensor> outputs) {
  const at::Tensor& first = *inputs.begin();
  Operands operands{type_of(first), mode, 1, first.numel(), {}, {}, {}, {}};
  int k = 0;
  for (const at::Tensor& each : inputs) operands.inputs[k++] = each.const_data_ptr();
  k = 0;
  for (const at::Tensor& each : outputs) operands.outputs[k++] = each.mutable_data_ptr();
  return operands;
}

// Operands of many rows; every tensor must have rows_of(). A tensor of one dimension among others
// of more (a bias) is the same row every time.
inline Operands as_rows(Mode mode, std::initializer_list<at::Tensor> inputs,
                        std::initializer_list<at::Tensor> outputs) {
  const at::Tensor& first = *inputs.begin();
  const Rows shape = *rows_of(first);
  Operands operands{type_of(first), mode, shape.count, shape.width, {}, {}, {}, {}};
  bool gaps = false;
  const auto stride_of = [&](const at::Tensor& tensor) {
    const Rows rows = *rows_of(tensor);
    gaps = gaps || rows.count != shape.count || rows.stride != rows.width;
    return rows.count == 1 ? 0 : rows.stride;
  };
  int k = 0;
  for (const at::Tensor& each : inputs) {
    operands.inputs[k] = each.const_data_ptr();
    operands.input_strides[k++] = stride_of(each);
  }
  k = 0;
  for (const at::Tensor& each : outputs) {
    operands.outputs[k] = each.mutable_data_ptr();
    operands.output_strides[k++] = stride_of(each);
  }
  if (!gaps) {
    operands.width *= operands.rows;
    operands.rows = 1;
  }
  return operands;
}

}  // namespace custom_gelu
