// The op's schema for torch, and for Python the list of what each ladder holds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#ifdef WITH_CUDA
#include "cuda/kernels.h"
#endif

TORCH_LIBRARY(cuda_matmul_f32, library) {
  library.def("matmul(Tensor a, Tensor b, str kernel) -> Tensor");
}

namespace {

using Described = std::vector<std::tuple<int, std::string, std::string>>;

template <typename AnyRung>
Described describe(const std::vector<AnyRung>& rungs) {
  Described described;
  for (const AnyRung& rung : rungs) {
    described.emplace_back(rung.number, rung.name, rung.summary);
  }
  return described;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("cpu_kernels", [] { return describe(cpu_rungs()); });
#ifdef WITH_CUDA
  module.def("cuda_kernels", [] { return describe(cuda_rungs()); });
#else
  module.def("cuda_kernels", [] { return Described(); });
#endif
}
