// The operators' CUDA implementations: device, stream and error handling around the launchers.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../torch/operators.h"
#include "launchers.h"

namespace custom_gelu {
namespace {

void check_launch(cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess,
              "custom_gelu_ext: a kernel could not be launched: ", cudaGetErrorString(error),
              "; python -m custom_gelu_ext.doctor shows what was built");
}

struct Cuda {
  static constexpr auto kKey = c10::DispatchKey::CUDA;
  using Guard = c10::cuda::CUDAGuard;

  static void elementwise(Op op, const Operands& operands) {
    static constexpr decltype(&cuda::gelu) kLaunchers[] = {
        cuda::gelu,      cuda::gelu_backward, cuda::gelu_double_backward,
        cuda::bias_gelu, cuda::geglu,         cuda::geglu_backward};
    check_launch(kLaunchers[int(op)](operands, c10::cuda::getCurrentCUDAStream()));
  }

  static void bias_gelu_backward(const Operands& operands, const at::Tensor& x) {
    const auto dtype = operands.type == Type::kFloat64 ? at::kDouble : at::kFloat;
    const at::Tensor partial =
        at::empty({cuda::partial_rows(operands), operands.width}, x.options().dtype(dtype));
    check_launch(cuda::bias_gelu_backward(operands, partial.mutable_data_ptr(),
                                          c10::cuda::getCurrentCUDAStream()));
  }

  static void encode(const Coded& coded) {
    check_launch(cuda::encode(coded, c10::cuda::getCurrentCUDAStream()));
  }
  static void decode(const Coded& coded) {
    check_launch(cuda::decode(coded, c10::cuda::getCurrentCUDAStream()));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(custom_gelu_ext, CUDA, m) {
  implement<Cuda>(m);
}

}  // namespace custom_gelu
