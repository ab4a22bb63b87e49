// From the op's tensors to a Problem, the same for the CPU and the GPU: checks with advice, and C.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "problem.h"

// "(3, 4)". Messages are put together as strings: printing numbers through c10's stream is under
// suspicion of a crash seen on one machine (LOG.md).
inline std::string shape_of(at::IntArrayRef sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + (sizes.size() == 1 ? ",)" : ")");
}

inline void check_operand(const std::string& name, const at::Tensor& x) {
  TORCH_CHECK_TYPE(
      x.scalar_type() == at::kFloat,
      name + " must be float32, not " + toString(x.scalar_type()) + ": use " + name + ".float()");
}

inline void check_operands(const at::Tensor& a, const at::Tensor& b) {
  check_operand("a", a);
  check_operand("b", b);
  TORCH_CHECK_VALUE(a.device() == b.device(), "a is on " + a.device().str() + " but b on " +
                                                  b.device().str() + ": move one with .to(device)");
  TORCH_CHECK_VALUE(a.dim() == b.dim() && (a.dim() == 2 || a.dim() == 3),
                    "the op takes two matrices or two batches of them, not shapes " +
                        shape_of(a.sizes()) + " and " + shape_of(b.sizes()) +
                        ": cuda_matmul_f32.matmul takes whatever torch.matmul does");
  TORCH_CHECK_VALUE(a.size(-1) == b.size(-2),
                    "a " + shape_of(a.sizes()) + " has " + std::to_string(a.size(-1)) +
                        " columns but b " + shape_of(b.sizes()) + " has " +
                        std::to_string(b.size(-2)) + " rows: they must be equal");
  TORCH_CHECK_VALUE(a.dim() == 2 || a.size(0) == b.size(0),
                    "a " + shape_of(a.sizes()) + " and b " + shape_of(b.sizes()) +
                        " are batches of unequal length: use cuda_matmul_f32.matmul, which "
                        "broadcasts, or .expand()");
}

inline std::vector<int64_t> result_shape(const at::Tensor& a, const at::Tensor& b) {
  if (a.dim() == 2) return {a.size(0), b.size(1)};
  return {a.size(0), a.size(1), b.size(2)};
}

inline Matrix as_matrix(const at::Tensor& t) {
  return {t.const_data_ptr<float>(), t.stride(-2), t.stride(-1), t.dim() == 3 ? t.stride(0) : 0};
}

inline Problem make_problem(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  const bool batched = c.dim() == 3;
  return {batched ? c.size(0) : 1,
          c.size(-2),
          c.size(-1),
          a.size(-1),
          as_matrix(a),
          as_matrix(b),
          c.mutable_data_ptr<float>(),
          c.stride(-2),
          batched ? c.stride(0) : 0};
}

// Whether two elements of t may be one in memory, as after expand(). Exact for slices, transposes
// and the like; a few exotic as_strided() views without overlap are called overlapping, too.
inline bool overlaps_itself(const at::Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1) dims.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;  // offset of the last element along the dimensions seen so far
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return true;
    reach += (size - 1) * stride;
  }
  return false;
}

// Raises for an `out` that the product of a and b may not be written to.
inline void check_out(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  check_operand("out", out);
  TORCH_CHECK_VALUE(out.device() == a.device(), "out is on " + out.device().str() + " but a on " +
                                                    a.device().str() + ": they must be equal");
  const std::vector<int64_t> shape = result_shape(a, b);
  TORCH_CHECK_VALUE(out.sizes() == at::IntArrayRef(shape),
                    "out " + shape_of(out.sizes()) + " must have the result's shape " +
                        shape_of(shape) + ": it is not resized");
  TORCH_CHECK(out.numel() == 0 || !overlaps_itself(out),
              "out of strides " + shape_of(out.strides()) +
                  " has elements that share memory: use .contiguous() or .clone()");
  for (const at::Tensor& input : {a, b}) {
    const at::MemOverlapStatus overlap = at::get_overlap_status(out, input);
    TORCH_CHECK(overlap != at::MemOverlapStatus::Full && overlap != at::MemOverlapStatus::Partial,
                "out shares memory with a or b, which are read while it is written: use .clone()");
  }
}

// The rung called `name` among those offered.
template <typename AnyRung>
const AnyRung& find_rung(const std::vector<AnyRung>& rungs, const std::string& name,
                         const char* device) {
  std::string names = "auto";
  for (const AnyRung& rung : rungs) {
    if (name == rung.name) return rung;
    names += std::string(", ") + rung.name;
  }
  TORCH_CHECK_VALUE(false, "no kernel '" + name + "' for " + device + " tensors: use " + names);
}
