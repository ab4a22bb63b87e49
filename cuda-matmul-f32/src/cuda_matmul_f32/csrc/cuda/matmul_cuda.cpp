// The op on CUDA tensors: on the tensors' GPU, on the caller's current stream.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/choose.h"
#include "cuda/kernels.h"
#include "op.h"

namespace {

const CudaRung& rung_for(const Problem& problem, const std::string& kernel, int device) {
  if (kernel == "auto") return choose_rung(problem, device);
  const CudaRung& rung = find_rung(cuda_rungs(), kernel, "cuda");
  const char* missing = missing_on(device, rung);
  TORCH_CHECK_VALUE(missing == nullptr, "kernel '" + kernel + "' " + missing +
                                            ", and cuda:" + std::to_string(device) +
                                            " is not one: use 'auto' or one of kernels('cuda')");
  return rung;
}

void compute(const Problem& p, const std::string& kernel, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  const CudaRung& rung = rung_for(p, kernel, device.index());
  const size_t bytes = rung.workspace_bytes == nullptr ? 0 : rung.workspace_bytes(p);
  // From torch's allocator: its next owner on this stream, or in this graph, runs after the kernel.
  at::Tensor workspace;
  if (bytes > 0) {
    workspace =
        at::empty({static_cast<int64_t>(bytes)}, at::TensorOptions(device).dtype(at::kByte));
  }
  const cudaError_t error = rung.launch(p, bytes > 0 ? workspace.mutable_data_ptr() : nullptr,
                                        c10::cuda::getCurrentCUDAStream(device.index()));
  TORCH_CHECK(error == cudaSuccess,
              std::string("kernel '") + rung.name + "' for M, N, K = " + std::to_string(p.M) +
                  ", " + std::to_string(p.N) + ", " + std::to_string(p.K) + " and a batch of " +
                  std::to_string(p.batch) + " failed to launch on " + device.str() + ": " +
                  cudaGetErrorString(error));
}

}  // namespace

TORCH_LIBRARY_IMPL(cuda_matmul_f32, CUDA, library) {
  library.impl("matmul", matmul<compute>);
  library.impl("matmul.out", matmul_out<compute>);
}
