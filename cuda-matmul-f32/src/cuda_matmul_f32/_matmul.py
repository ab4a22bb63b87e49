"""The public function: the usual call goes straight to the op, which checks for itself."""

from __future__ import annotations

import torch
from torch import Tensor

from cuda_matmul_f32._broadcast import product
from cuda_matmul_f32._op import op, op_out

PRECISIONS = ("ieee",)


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    out: Tensor | None = None,
    kernel: str = "auto",
    precision: str = "ieee",
) -> Tensor:
    """Return the matrix product ``a @ b`` in true FP32, for whatever torch.matmul takes.

    Args:
        a: float32 [..., M, K], or a vector [K]; any strides. Transposed, sliced and expanded views
            are not copied, except for batches whose dimensions no single stride describes.
        b: float32 [..., K, N], or a vector [K], on the same device; any strides. Batches broadcast.
        out: float32 tensor of the result's shape, which is written to and returned; any strides,
            but row-major or column-major ones are faster. It may share no memory with a or b.
        kernel: a rung of the device's ladder by name (see :func:`kernels`), or "auto" for the
            fastest one for these sizes.
        precision: "ieee": products and sums are IEEE float32 with fused multiply-add, never TF32.
            ``|c - exact| <= K * eps * (|a| @ |b|)`` element by element, with eps = 2**-23.

    Returns:
        float32 [..., M, N], contiguous, without M where a and N where b is a vector. Zeros if K is
        0. NaN and Inf come out as IEEE has it: ``0 * inf`` is NaN and is never skipped. The same
        inputs give the same bits on each run. Differentiable any number of times, in forward mode,
        too; the gradients run on the same rung. Autocast leaves it in float32.

    Raises:
        TypeError: an argument is no tensor, or no float32.
        ValueError: a shape, device, kernel or precision that does not exist or fit.
        RuntimeError: out shares memory with an input, or with itself, or would need a gradient; or
            CUDA tensors, but this build has no CUDA kernels and torch is set to TF32.
    """
    if precision != "ieee":
        raise ValueError(f"precision {precision!r} does not exist: use one of {PRECISIONS}")
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        _refuse_types(a=a, b=b)
    try:
        dims = a.dim()
        if dims == b.dim() and (dims == 2 or (dims == 3 and a.shape[0] == b.shape[0])):
            if out is None:
                return op(a, b, kernel)
            op_out(a, b, kernel, out=out)
            return out
        return product(a, b, kernel, out)
    except NotImplementedError:  # the dispatcher knows no kernel for such tensors
        _refuse_kinds(a=a, b=b, out=out)
        raise


def _refuse_types(**arguments: object) -> None:
    for name, x in arguments.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(x).__name__}")


def _refuse_kinds(**arguments: Tensor | None) -> None:
    for name, x in arguments.items():
        if x is None:
            continue
        if x.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, not {x.layout}: use {name}.to_dense()")
        if x.device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(f"{name} is on {x.device}: there are kernels for cpu and cuda only")
