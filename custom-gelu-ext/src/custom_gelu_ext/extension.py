"""The compiled library, loaded once, and the question of which devices it has kernels for."""

from __future__ import annotations

import warnings

import torch

from custom_gelu_ext._build import BuildInfo, build

build_info: BuildInfo = build()
LOADED: bool = build_info.module is not None

if LOADED and not build_info.cuda and torch.cuda.is_available():
    warnings.warn(
        f"custom_gelu_ext: {build_info.missing}; CUDA tensors use torch's own GELU", stacklevel=2
    )


def has_kernel(device: torch.device) -> bool:
    """Whether tensors on ``device`` run our kernels; if not, torch's own are used."""
    if device.type == "cuda":
        return build_info.cuda
    # The meta device has shapes and no values: its "kernel" is the fake one in operators.py.
    return LOADED and device.type in ("cpu", "meta")
