"""Products of whatever torch.matmul takes, vectors and broadcast batches, by one call of the op."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from cuda_matmul_f32._kernels import build_info
from cuda_matmul_f32._op import op, op_out


def product(a: Tensor, b: Tensor, kernel: str, out: Tensor | None = None) -> Tensor:
    """Multiply a [..., M, K] by b [..., K, N], or vectors [K], as torch.matmul does."""
    for name, x in (("a", a), ("b", b)):
        if x.dim() == 0:
            raise ValueError(f"{name} is a single value: a product takes vectors and matrices")
    # A vector is a row of a, or a column of b, which the result then lacks.
    matrix_a = a[None, :] if a.dim() == 1 else a
    matrix_b = b[:, None] if b.dim() == 1 else b
    if matrix_a.shape[-1] != matrix_b.shape[-2]:
        raise ValueError(
            f"a {tuple(a.shape)} has {matrix_a.shape[-1]} columns but b {tuple(b.shape)} has "
            f"{matrix_b.shape[-2]} rows: they must be equal"
        )
    batch = _broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = batch + matrix_a.shape[-2:-1] * (a.dim() > 1) + matrix_b.shape[-1:] * (b.dim() > 1)
    flat_a, flat_b = _flatten(matrix_a, matrix_b, batch)
    if out is None:
        return op(flat_a, flat_b, kernel).view(shape)

    if out.shape != shape:
        raise ValueError(
            f"out {tuple(out.shape)} must have the result's shape {tuple(shape)}: it is not resized"
        )
    full_out = out[..., None] if b.dim() == 1 else out
    full_out = full_out[..., None, :] if a.dim() == 1 else full_out  # [..., M, N] now
    flat_shape = (*flat_a.shape[:-1], flat_b.shape[-1])
    if is_one_run(full_out, full_out.dim() - len(flat_shape) + 1):
        op_out(flat_a, flat_b, kernel, out=full_out.view(flat_shape))
    else:
        out.copy_(op(flat_a, flat_b, kernel).view(shape))
    return out


def _flatten(a: Tensor, b: Tensor, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return a and b as two matrices, or as two batches of matrices of one length."""
    one_b = all(size == 1 for size in b.shape[:-2])
    # All matrices of a times one b: a's rows are those of one tall matrix. A copy to make them so
    # pays if b needs a gradient, which would else be computed for each matrix and then summed.
    pays = b.requires_grad and torch.is_grad_enabled()
    if batch and one_b and (pays or is_one_run(a, a.dim() - 1)):
        K, N = b.shape[-2:]
        return a.reshape(prod(a.shape[:-1]), K), b.reshape(K, N)
    if not batch:
        return a, b

    # Views, unless the batch's dimensions lie in memory as no single stride describes.
    def as_batch(x: Tensor) -> Tensor:
        return x.expand(*batch, *x.shape[-2:]).reshape(prod(batch), *x.shape[-2:])

    return as_batch(a), as_batch(b)


def is_one_run(x: Tensor, dims: int) -> bool:
    """Tell whether the first ``dims`` dimensions of x can be viewed as one."""
    if x.numel() == 0:
        return True
    run = None  # the elements that the dimensions seen so far, from the inside, cover
    for i in reversed(range(dims)):
        if x.shape[i] == 1:
            continue
        if run is not None and x.stride(i) != run:
            return False
        run = x.shape[i] * x.stride(i)
    return True


def _broadcast_shapes(a: torch.Size, b: torch.Size) -> torch.Size:
    try:
        return torch.Size(torch.broadcast_shapes(a, b))  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(
            f"the batches of a, {tuple(a)}, and of b, {tuple(b)}, do not broadcast: sizes must be "
            f"equal or 1"
        ) from None


def _vmap(
    info: object, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor, kernel: str
) -> tuple[Tensor, int]:
    # One more batch dimension, in front; an operand without it is broadcast.
    a, b = (x if d is None else x.movedim(d, 0) for x, d in zip((a, b), in_dims, strict=False))
    return product(a, b, kernel), 0


if build_info.module is not None:
    torch.library.register_vmap("cuda_matmul_f32::matmul", _vmap)
