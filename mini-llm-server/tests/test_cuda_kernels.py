"""The CUDA operators against float64, on ragged and on hostile input.

Tests with `sanitizer` in their names are small enough to run under compute-sanitizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from mini_llm_server import kernels
from mini_llm_server.model.attention import (
    Decodes,
    KernelPagedAttention,
    TorchPagedAttention,
    make_attention,
)
from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.elementwise import KernelElementwise, TorchElementwise

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))
# Around the ends of blocks of 16, of splits of 128 tokens, and where splits grow longer.
RAGGED = [0, 1, 15, 16, 17, 33, 127, 128, 129, 255, 256, 257, 1000, 4096, 4097, 5000]


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    assert kernels.have(CUDA, torch.bfloat16), "the CUDA kernels were not built"


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator(CUDA).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=CUDA).to(dtype)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm().clamp_min(1e-30))


class Batch:
    """A layer's cache that is NaN wherever no sequence's tokens are, its tables and queries."""

    def __init__(
        self,
        lengths: Sequence[int],
        shape: tuple[int, int, int],
        dtype: torch.dtype = torch.float32,
        block_size: int = 16,
        scale: float = 1.0,
    ) -> None:
        self.K, G, D = shape
        self.H = self.K * G
        self.block_size = block_size
        needed = [-(-length // block_size) for length in lengths]
        order = torch.randperm(sum(needed) + 1, generator=torch.Generator().manual_seed(0))
        self.table = torch.full((len(lengths), max(1, *needed)), int(order[-1])).to(CUDA)
        self.k = torch.full((len(order) * block_size, self.K, D), torch.nan).to(CUDA, dtype)
        self.v = self.k.clone()
        self.slots = []
        taken = 0
        for b, (length, blocks) in enumerate(zip(lengths, needed, strict=True)):
            self.table[b, :blocks] = order[taken : taken + blocks].to(CUDA)
            taken += blocks
            position = torch.arange(length, device=CUDA)
            slots = self.table[b, position // block_size] * block_size + position % block_size
            self.k[slots] = scale * randn(length, self.K, D, seed=2 * b, dtype=dtype)
            self.v[slots] = randn(length, self.K, D, seed=2 * b + 1, dtype=dtype)
            self.slots.append(slots)
        self.lengths = torch.tensor(lengths, device=CUDA)
        # As the model has them: a part of the rows of all projections.
        self.q = randn(len(lengths), self.H + 2 * self.K, D, seed=99, dtype=dtype)[:, : self.H]

    def attend(
        self, rows: slice = slice(None), arrivals: torch.Tensor | None = None
    ) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mini_llm_server.paged_decode(
            self.q[rows],
            self.k,
            self.v,
            self.table[rows],
            self.lengths[rows],
            self.block_size,
            self.q.shape[-1] ** -0.5,
            arrivals,
        )
        return out

    def expected(self, b: int) -> torch.Tensor:
        """Return what sequence b's row has to be, in float64."""
        D, G = self.q.shape[-1], self.H // self.K
        k, v = (each[self.slots[b]].double().repeat_interleave(G, 1) for each in (self.k, self.v))
        scores = torch.einsum("hd,lhd->hl", self.q[b].double(), k) / D**0.5
        return torch.einsum("hl,lhd->hd", scores.softmax(-1), v).flatten()

    def check(self, got: torch.Tensor, tolerance: float) -> None:
        for b, slots in enumerate(self.slots):
            if len(slots):
                assert error(got[b], self.expected(b)) <= tolerance, b  # false for NaN too
            else:
                assert not got[b].any(), b


@dtypes
@pytest.mark.parametrize(
    "shape",
    [(3, 3, 64), (2, 1, 128), (1, 8, 96), (2, 8, 80), (1, 5, 128), (2, 12, 64), (2, 2, 8),
     (1, 4, 256), (1, 8, 256), (8, 1, 16), (1, 71, 64)],
)  # fmt: skip
def test_decodes_of_ragged_contexts_equal_float64(
    dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    batch = Batch(RAGGED, shape, dtype)
    batch.check(batch.attend(), TOLERANCE[dtype])


@pytest.mark.parametrize("block_size", [1, 3, 20, 256])
def test_blocks_may_have_any_size(block_size: int) -> None:
    batch = Batch([0, 1, 19, 20, 21, 300, 1025], (3, 3, 64), block_size=block_size)
    batch.check(batch.attend(), TOLERANCE[torch.float32])


def test_more_sequences_than_a_block_has_threads() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 400, (391,), generator=generator).tolist()
    batch = Batch(lengths, (1, 2, 64), torch.bfloat16)
    batch.check(batch.attend(), TOLERANCE[torch.bfloat16])


@dtypes
def test_a_decode_has_the_same_bits_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    batch = Batch(RAGGED, (3, 3, 64), dtype)
    together = batch.attend()
    assert torch.equal(batch.attend(), together)
    for b in range(len(RAGGED)):
        assert torch.equal(batch.attend(slice(b, b + 1))[0], together[b])


def test_the_counters_are_zero_again_and_serve_any_number_of_steps() -> None:
    batch = Batch(RAGGED, (3, 12, 64))
    arrivals = torch.zeros(len(RAGGED), batch.H, dtype=torch.int32, device=CUDA)
    expected = batch.attend()
    for _ in range(3):
        assert torch.equal(batch.attend(arrivals=arrivals), expected)
        assert not arrivals.any()


@pytest.mark.parametrize("scale", [1e-30, 100.0, 1e17])
def test_scores_of_any_size_neither_overflow_nor_vanish(scale: float) -> None:
    batch = Batch([40, 7, 300], (3, 3, 64), scale=scale)
    batch.check(batch.attend(), 1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_own_sequence_and_is_not_hidden(bad: float) -> None:
    batch = Batch([40, 700, 100], (3, 3, 64))
    clean = batch.attend()
    batch.k[batch.slots[1][3]] = bad
    got = batch.attend()
    assert torch.equal(got[0], clean[0])
    assert torch.equal(got[2], clean[2])
    assert got[1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sanitizer_small_decodes(dtype: torch.dtype) -> None:
    batch = Batch([0, 1, 17, 130, 257], (2, 3, 64), dtype)
    batch.check(batch.attend(), TOLERANCE[dtype])
    batch = Batch([5, 129], (1, 9, 80), dtype)
    batch.check(batch.attend(), TOLERANCE[dtype])


def test_unusable_input_is_refused_with_a_reason() -> None:
    batch = Batch([5], (1, 1, 64))
    q, k, table, lengths = batch.q, batch.k, batch.table, batch.lengths
    decode = torch.ops.mini_llm_server.paged_decode
    with pytest.raises(RuntimeError, match="head size is 12"):
        decode(q[..., :12], k[..., :12], k[..., :12], table, lengths, 16, 1.0)
    with pytest.raises(RuntimeError, match="different types"):
        decode(q, k.half(), k.half(), table, lengths, 16, 1.0)
    with pytest.raises(RuntimeError, match="indices are int64"):
        decode(q, k, k, table.int(), lengths, 16, 1.0)
    with pytest.raises(RuntimeError, match="indices are not on cuda"):
        decode(q, k, k, table, lengths.cpu(), 16, 1.0)


@dtypes
@pytest.mark.parametrize("shape", [(3, 64), (2, 80), (1, 5), (3, 6)])
def test_sanitizer_keys_and_values_go_to_their_slots(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    K, D = shape
    caches = [torch.full((40, K, D), torch.nan, device=CUDA, dtype=dtype) for _ in range(2)]
    qkv = randn(4, 5 * K, D, seed=1, dtype=dtype)
    k, v = qkv[:, 3 * K : 4 * K], qkv[:, 4 * K :]
    slots = torch.tensor([7, -1, 39, 0], device=CUDA)
    torch.ops.mini_llm_server.write_kv(k, v, slots, *caches)
    for cache, each in zip(caches, (k, v), strict=True):
        assert torch.equal(cache[slots[[0, 2, 3]]], each[[0, 2, 3]])
        assert cache.isfinite().sum() == 3 * K * D  # the padded token went nowhere


@dtypes
@pytest.mark.parametrize("width", [1, 3, 16, 96, 576, 1000, 8192, 20_008])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("size", [1e-2, 1e2])
def test_sanitizer_norm_equals_float64(
    dtype: torch.dtype, width: int, adds: bool, size: float
) -> None:
    x = (size * randn(3, width, seed=1)).to(dtype)
    delta = (size * randn(3, width, seed=2)).to(dtype) if adds else None
    weight = randn(width, seed=3, dtype=dtype)
    total = x.double() if delta is None else x.double() + delta.double()
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    summed, normed = KernelElementwise().add_norm(x, delta, weight, 1e-5)
    assert error(summed, total) <= TOLERANCE[dtype]
    assert error(normed, expected) <= TOLERANCE[dtype]


@dtypes
@pytest.mark.parametrize("width", [1, 3, 160, 1536, 1001])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_sanitizer_gated_activation_equals_float64(
    dtype: torch.dtype, width: int, size: float
) -> None:
    gate_up = (size * randn(5, 2 * width, seed=1)).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    got = KernelElementwise().silu_mul(gate_up)
    assert error(got, gate * torch.sigmoid(gate) * up) <= TOLERANCE[dtype]


def test_the_smallest_and_largest_gates() -> None:
    gate = torch.tensor([[-1e30, -100.0, -87.5, -0.0, 87.5, 1e30, torch.nan]], device=CUDA)
    out = KernelElementwise().silu_mul(torch.cat([gate, torch.ones_like(gate)], -1))
    expected = gate.double() * torch.sigmoid(gate.double())
    assert torch.allclose(out.double(), expected, rtol=1e-6, atol=1e-35, equal_nan=True)


@dtypes
@pytest.mark.parametrize(("heads", "D"), [(1, 2), (4, 64), (5, 80), (12, 128)])
def test_sanitizer_rotation_equals_float64_in_part_of_a_wider_row(
    dtype: torch.dtype, heads: int, D: int
) -> None:
    wide = randn(7, heads + 2, D, seed=1, dtype=dtype)
    before = wide.clone()
    angle = 10 * randn(7, 1, D // 2, seed=2).double()
    cos = torch.cat([angle.cos(), angle.cos()], -1).to(dtype)
    sin = torch.cat([-angle.sin(), angle.sin()], -1).to(dtype)
    expected = TorchElementwise().rotate(before[:, :heads].double(), cos.double(), sin.double())
    got = KernelElementwise().rotate(wide[:, :heads], cos, sin)
    assert error(got, expected) <= TOLERANCE[dtype]
    assert torch.equal(wide[:, heads:], before[:, heads:])


def test_operators_of_no_tokens() -> None:
    ops = KernelElementwise()
    x = torch.empty(0, 64, device=CUDA)
    _, normed = ops.add_norm(x, None, torch.ones(64, device=CUDA), 1e-5)
    assert normed.shape == (0, 64)
    assert ops.silu_mul(x).shape == (0, 32)
    assert ops.rotate(x.view(0, 2, 32), x.view(0, 1, 64)[..., :32].contiguous(),
                      x.view(0, 1, 64)[..., :32].contiguous()).shape == (0, 2, 32)  # fmt: skip


def test_a_graph_reads_its_batch_anew_at_each_replay() -> None:
    config = ModelConfig(10, 16, 16, 1, 9, 3, 64, 4096)
    attention = KernelPagedAttention(config, 40, 16, torch.float32, CUDA)
    attention.kv.normal_()
    slots = torch.full((4,), -1, device=CUDA)
    lengths, table = torch.zeros_like(slots), torch.zeros(4, 20, dtype=torch.int64, device=CUDA)
    attend = attention.decode(Decodes(slots, lengths, table))
    q, k, v = randn(4, 9, 64, seed=1), randn(4, 3, 64, seed=2), randn(4, 3, 64, seed=3)
    before = attention.kv.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(0, q, k, v)
    graph.replay()
    assert torch.equal(attention.kv, before)
    assert not out.any()
    for length in (1, 16, 17, 128, 129, 320):
        table[1] = torch.randperm(40, device=CUDA)[:20]
        lengths[1] = length
        slots[1] = table[1, (length - 1) // 16] * 16 + (length - 1) % 16
        graph.replay()
        position = torch.arange(length, device=CUDA)
        seen = table[1, position // 16] * 16 + position % 16
        assert torch.equal(attention.kv[0, :, slots[1]], torch.stack([k[1], v[1]]))
        keys, values = (each[seen].repeat_interleave(3, 1).double() for each in attention.kv[0])
        weights = torch.einsum("hd,lhd->hl", q[1].double(), keys).div(8).softmax(-1)
        assert error(out[1], torch.einsum("hl,lhd->hd", weights, values).flatten()) <= 2e-6
        assert not out[[0, 2, 3]].any()


def test_the_backend_is_torchs_for_heads_that_the_kernel_does_not_take() -> None:
    for head_dim, expected in ((64, KernelPagedAttention), (20, TorchPagedAttention),
                               (264, TorchPagedAttention)):  # fmt: skip
        config = ModelConfig(10, 16, 16, 1, 2, 1, head_dim, 64)
        assert type(make_attention(config, 4, 4, torch.float16, CUDA)) is expected
