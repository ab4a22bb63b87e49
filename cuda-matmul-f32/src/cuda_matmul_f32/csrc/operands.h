// What the CPU's and the GPU's implementation of the op share: checks, and tensors to a Problem.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string>
#include <vector>

#include "problem.h"

// "[3, 4]". Not through the shape's own operator<<: on one machine (GCC 13.3, torch 2.11) checks
// whose message printed a shape crashed, those without did not. The cause is not known.
inline std::string shape_of(const at::Tensor& tensor) {
  std::string text = "[";
  for (const int64_t size : tensor.sizes()) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

// For whoever calls torch.ops.cuda_matmul_f32.matmul itself; matmul() in Python checks before, with
// advice on each error.
inline void check_operands(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat,
              "matmul: a and b must be float32, not ", a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2, "matmul: a and b must be 2-D, not of shape ",
              shape_of(a), " and ", shape_of(b));
  TORCH_CHECK(a.size(1) == b.size(0), "matmul: the columns of a, shape ", shape_of(a),
              ", must be as many as the rows of b, shape ", shape_of(b));
  TORCH_CHECK(a.device() == b.device(), "matmul: a is on ", a.device(), " but b is on ",
              b.device());
}

inline Matrix as_matrix(const at::Tensor& t) {
  return {t.const_data_ptr<float>(), t.stride(0), t.stride(1)};
}

inline Problem make_problem(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  return {a.size(0),  b.size(1), a.size(1), as_matrix(a), as_matrix(b), c.mutable_data_ptr<float>(),
          c.stride(0)};
}

// The rung called `name`; "auto" is the top one.
template <typename AnyRung>
const AnyRung& find_rung(const std::vector<AnyRung>& rungs, const std::string& name) {
  if (name == "auto") return rungs.back();
  std::string names = "auto";
  for (const AnyRung& rung : rungs) {
    if (name == rung.name) return rung;
    names += std::string(", ") + rung.name;
  }
  TORCH_CHECK(false, "matmul: no kernel is called \"", name, "\" here; there are ", names);
}
