"""GELU as a PyTorch extension from scratch: C++ and CUDA kernels with autograd.

The first import compiles the C++/CUDA library (once; it is cached), see ``_build.py``. Where it
cannot be compiled, the same functions run torch's own kernels, after one warning.
"""

from custom_gelu_ext.extension import build_info
from custom_gelu_ext.functional import bias_gelu, geglu, gelu, gelu_
from custom_gelu_ext.mlp import mlp
from custom_gelu_ext.modules import GELU, MLP, replace_gelu

__version__ = "0.2.0"
__all__ = [
    "GELU",
    "MLP",
    "bias_gelu",
    "build_info",
    "geglu",
    "gelu",
    "gelu_",
    "mlp",
    "replace_gelu",
]
