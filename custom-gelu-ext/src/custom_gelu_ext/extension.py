"""The compiled library, loaded once, and the question of which devices it has kernels for."""

from __future__ import annotations

import warnings

import torch

from custom_gelu_ext._ahead import ahead_of_time
from custom_gelu_ext._build import BuildInfo, build

build_info: BuildInfo = ahead_of_time() or build()
LOADED: bool = build_info.module is not None

if LOADED and not build_info.cuda and torch.cuda.is_available():
    warnings.warn(
        f"custom_gelu_ext: {build_info.missing}; CUDA tensors use torch's own GELU", stacklevel=2
    )


CUDA: bool = build_info.cuda


def has_kernel(x: torch.Tensor) -> bool:
    """Whether ``x`` is on a device that our kernels run on; if not, torch's own are used."""
    if x.is_cuda:
        return CUDA
    # The meta device has shapes and no values: its "kernel" is the fake one in operators.py.
    return LOADED and (x.is_cpu or x.is_meta)
