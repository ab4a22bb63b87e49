"""The public function: checks with advice, then the op, or torch where nothing could be built."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from cuda_matmul_f32._kernels import build_info
from cuda_matmul_f32._op import op

PRECISIONS = ("ieee",)


def matmul(a: Tensor, b: Tensor, *, kernel: str = "auto", precision: str = "ieee") -> Tensor:
    """Return the matrix product ``a @ b`` in true FP32.

    Args:
        a: float32 [M, K], any strides; transposed, sliced and expanded views are not copied.
        b: float32 [K, N] on the same device, any strides.
        kernel: a rung of the device's ladder by name (see :func:`kernels`), or "auto" for the
            top one.
        precision: "ieee": products and sums are IEEE float32 with fused multiply-add, never TF32.
            ``|c - exact| <= K * eps * (|a| @ |b|)`` element by element, with eps = 2**-23.

    Returns:
        float32 [M, N], contiguous. Zeros if K is 0. NaN and Inf come out as IEEE has it:
        ``0 * inf`` is NaN and is never skipped. The same inputs give the same bits on each run.
        Differentiable any number of times; the gradients run on the same rung.

    Raises:
        TypeError: a or b is no tensor, or no float32.
        ValueError: a shape, device, kernel or precision that does not exist or fit.
        RuntimeError: CUDA tensors, but this build has no CUDA kernels and torch is set to TF32.
    """
    _check(a, b)
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} does not exist: use one of {PRECISIONS}")
    if build_info.module is None or (a.is_cuda and not build_info.cuda):
        if kernel != "auto":
            raise ValueError(
                f"no kernel {kernel!r} for {a.device.type} tensors ({build_info.missing}): use auto"
            )
        return _torch_matmul(a, b)
    return op(a, b, kernel)


def _check(a: Tensor, b: Tensor) -> None:
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(x).__name__}")
        if x.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, not {x.dtype}: use {name}.float()")
        if x.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, not {x.layout}: use {name}.to_dense()")
        if x.dim() not in (2, 3):
            raise ValueError(f"{name} must be 2-D or 3-D, not of shape {tuple(x.shape)}")
        if x.device.type not in ("cpu", "cuda"):
            raise ValueError(f"{name} is on {x.device}: there are kernels for cpu and cuda only")
    if a.device != b.device:
        raise ValueError(f"a is on {a.device} but b on {b.device}: move one with .to(device)")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"a {tuple(a.shape)} has {a.shape[-1]} columns but b {tuple(b.shape)} has "
            f"{b.shape[-2]} rows: they must be equal"
        )


def _torch_matmul(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cuda:
        if torch.backends.cuda.matmul.allow_tf32:
            raise RuntimeError(
                f"no CUDA kernels were built ({build_info.missing}) and torch's own would use "
                f"TF32, which precision='ieee' excludes: set "
                f"torch.backends.cuda.matmul.allow_tf32 = False"
            )
        warnings.warn(
            f"no CUDA kernels were built ({build_info.missing}): torch's own are used", stacklevel=3
        )
    return torch.matmul(a, b)
