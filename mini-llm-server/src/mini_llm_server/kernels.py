"""Which devices and types have kernels of ours. The first question may compile them."""

from __future__ import annotations

import functools
import warnings

import torch

from mini_llm_server import _build

DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}


def have(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch.ops.mini_llm_server runs there; if not, torch's own operators do."""
    return dtype in DTYPES.get(device.type, ()) and _are_built(device.type)


@functools.cache
def _are_built(kind: str) -> bool:
    if kind == "cuda" and (missing := _build.cuda_missing()):
        # Without the GPU's kernels a GPU's model needs none of the CPU's: nothing is compiled.
        warnings.warn(f"mini_llm_server: {missing}; torch's own kernels are used", stacklevel=2)
        return False
    from mini_llm_server import extension

    return extension.is_available
