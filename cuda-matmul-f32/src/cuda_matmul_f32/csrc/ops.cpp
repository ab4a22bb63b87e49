// The op's schema for torch, and for Python the list of what each ladder holds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#ifdef WITH_CUDA
#include "cuda/ceiling.h"
#include "cuda/choose.h"
#include "cuda/kernels.h"
#endif

TORCH_LIBRARY(cuda_matmul_f32, library) {
  library.def("matmul(Tensor a, Tensor b, str kernel) -> Tensor");
  library.def("matmul.out(Tensor a, Tensor b, str kernel, *, Tensor(a!) out) -> ()");
}

namespace {

using Described = std::vector<std::tuple<int, std::string, std::string>>;

template <typename AnyRung, typename Offered>
Described describe(const std::vector<AnyRung>& rungs, Offered offered) {
  Described described;
  for (const AnyRung& rung : rungs) {
    if (offered(rung)) described.emplace_back(rung.number, rung.name, rung.summary);
  }
  return described;
}

Described cpu_kernels() {
  return describe(cpu_rungs(), [](const CpuRung&) { return true; });
}

// What GPU `device` runs; every rung for a negative number.
Described cuda_kernels(int device) {
#ifdef WITH_CUDA
  return describe(cuda_rungs(), [&](const CudaRung& rung) {
    return device < 0 || missing_on(device, rung) == nullptr;
  });
#else
  return {};
#endif
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("cpu_kernels", cpu_kernels);
  module.def("cuda_kernels", cuda_kernels);
#ifdef WITH_CUDA
  module.def("estimated_cycles", [](int64_t M, int64_t N, int64_t K, int device) {
    return estimated_cycles({1, M, N, K, {nullptr, K, 1, 0}, {nullptr, N, 1, 0}, nullptr, N, 0},
                            device);
  });
  module.def("ffma_ceiling", ffma_ceiling, pybind11::call_guard<pybind11::gil_scoped_release>());
#endif
}
