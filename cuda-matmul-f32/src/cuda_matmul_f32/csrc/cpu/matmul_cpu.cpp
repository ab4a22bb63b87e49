// The op on CPU tensors.
#include <torch/library.h>

#include "cpu/kernels.h"
#include "op.h"

namespace {

void compute(const Problem& problem, const std::string& kernel, c10::Device) {
  const std::vector<CpuRung>& rungs = cpu_rungs();
  const CpuRung& rung = kernel == "auto" ? rungs.back() : find_rung(rungs, kernel, "cpu");
  rung.launch(problem);
}

}  // namespace

TORCH_LIBRARY_IMPL(cuda_matmul_f32, CPU, library) {
  library.impl("matmul", matmul<compute>);
  library.impl("matmul.out", matmul_out<compute>);
}
