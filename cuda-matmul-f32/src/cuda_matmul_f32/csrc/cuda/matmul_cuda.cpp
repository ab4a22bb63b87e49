// The op on CUDA tensors: on the tensors' GPU, on the caller's current stream.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/kernels.h"
#include "operands.h"

namespace {

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b, std::string kernel) {
  check_operands(a, b);
  const CudaRung& rung = find_rung(cuda_rungs(), kernel);
  const c10::cuda::CUDAGuard guard(a.device());
  at::Tensor c = at::empty({a.size(0), b.size(1)}, a.options());
  if (c.numel() == 0) return c;  // a grid of no blocks is an error to CUDA
  const cudaError_t error =
      rung.launch(make_problem(a, b, c), c10::cuda::getCurrentCUDAStream(a.get_device()));
  TORCH_CHECK(error == cudaSuccess, "matmul: kernel \"", rung.name, "\" on a ", shape_of(a),
              " times b ", shape_of(b), " failed to launch on ", a.device(), ": ",
              cudaGetErrorString(error));
  return c;
}

}  // namespace

TORCH_LIBRARY_IMPL(cuda_matmul_f32, CUDA, library) {
  library.impl("matmul", matmul);
}
