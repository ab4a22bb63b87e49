"""FP32 matrix multiplication as a numbered ladder of CUDA and C++ kernels, naive to fastest."""

from cuda_matmul_f32._build import BuildInfo
from cuda_matmul_f32._kernels import Kernel, build_info, ffma_ceiling, kernels
from cuda_matmul_f32._matmul import matmul

__version__ = "0.1.0"

__all__ = [
    "BuildInfo",
    "Kernel",
    "__version__",
    "build_info",
    "ffma_ceiling",
    "kernels",
    "matmul",
]
