// The op's two forms, for a device that computes a Problem with the rung of a given name.
#pragma once

#include <ATen/ops/empty.h>

#include <string>

#include "operands.h"

using Compute = void (*)(const Problem& problem, const std::string& kernel, c10::Device device);

template <Compute kCompute>
at::Tensor matmul(const at::Tensor& a, const at::Tensor& b, std::string kernel) {
  check_operands(a, b);
  at::Tensor c = at::empty(result_shape(a, b), a.options());
  if (c.numel() > 0) kCompute(make_problem(a, b, c), kernel, a.device());
  return c;
}

// Kernels write adjacent columns, to memory that they do not read.
template <Compute kCompute>
void matmul_out(const at::Tensor& a, const at::Tensor& b, std::string kernel, at::Tensor& out) {
  check_operands(a, b);
  check_out(a, b, out);
  const auto has_adjacent = [&](int64_t dim) { return out.stride(dim) == 1 || out.size(dim) == 1; };
  // Slices of one tensor may interleave without sharing an element; this does not look closer.
  const bool apart = !out.is_alias_of(a) && !out.is_alias_of(b);
  if (out.numel() == 0) return;
  if (apart && has_adjacent(-1)) {
    kCompute(make_problem(a, b, out), kernel, a.device());
  } else if (apart && has_adjacent(-2)) {  // adjacent rows: C^T = B^T A^T
    kCompute(make_problem(b.mT(), a.mT(), out.mT()), kernel, a.device());
  } else {
    out.copy_(matmul<kCompute>(a, b, kernel));
  }
}
