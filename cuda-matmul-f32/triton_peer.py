"""A matrix product in Triton with IEEE FP32 arithmetic: a peer for benchmark.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def _config(m: int, n: int, k: int, warps: int, stages: int) -> triton.Config:
    return triton.Config(
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages
    )


@triton.autotune(
    [_config(64, 64, 16, 4, 3), _config(128, 64, 16, 4, 3), _config(128, 128, 16, 8, 3)],
    key=["M", "N", "K"],
)
@triton.jit
def _kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Blocks in groups of 8 rows of tiles, so that those that run together share operands in L2.
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tl.program_id(0) // (8 * tiles_n)
    height = tl.minimum(tiles_m - group * 8, 8)
    inside = tl.program_id(0) % (8 * tiles_n)
    rows = (group * 8 + inside % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = inside // height * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    # Past the edge a row or column is read twice, and not stored.
    a_ptrs = a_ptr + (rows % M)[:, None].to(tl.int64) * K + ks[None, :]
    b_ptrs = b_ptr + ks[:, None].to(tl.int64) * N + (cols % N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=ks[None, :] < K - k, other=0.0)
        b = tl.load(b_ptrs, mask=ks[:, None] < K - k, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K * N
    inside_c = (rows[:, None] < M) & (cols[None, :] < N)
    tl.store(c_ptr + rows[:, None].to(tl.int64) * N + cols[None, :], total, mask=inside_c)


def triton_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply contiguous a [M, K] by b [K, N] on a GPU; the first call per shape tunes."""
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty(M, N, device=a.device)
    _kernel[lambda x: (triton.cdiv(M, x["BLOCK_M"]) * triton.cdiv(N, x["BLOCK_N"]),)](
        a, b, c, M, N, K
    )
    return c
