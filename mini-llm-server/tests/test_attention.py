"""Every attention backend against a plain softmax in float64 over each sequence by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_llm_server import extension
from mini_llm_server.model.attention import (
    Decodes,
    KernelPagedAttention,
    Span,
    TorchPagedAttention,
    make_attention,
)
from mini_llm_server.model.config import ModelConfig

BACKENDS = [TorchPagedAttention]
if extension.is_available:
    BACKENDS.append(KernelPagedAttention)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.mark.skipif(not extension.is_available, reason="no C++ compiler")
def test_prompts_are_attended_together_up_to_a_bound() -> None:
    """On a GPU; here only how the spans are divided, which is the same code."""
    attention = KernelPagedAttention(config_of(2, 1, 8), 4, 16, torch.float32, torch.device("cpu"))
    spans = [Span(0, 1, []), *(Span(start, 9, []) for start in (0, 40_000, 25_000, 70_000, 5))]
    attention._has_flash = True
    assert [len(batch) for batch in attention._batches(spans)] == [1, 3, 1, 1]
    attention._has_flash = False
    assert [len(batch) for batch in attention._batches(spans)] == [1] * 6


def config_of(heads: int, kv_heads: int, head_dim: int) -> ModelConfig:
    return ModelConfig(10, 16, 16, 2, heads, kv_heads, head_dim, 4096)


def plain(q_THD: torch.Tensor, k_LKD: torch.Tensor, v_LKD: torch.Tensor) -> torch.Tensor:
    """Attend the last T of L tokens, head by head."""
    T, H, D = q_THD.shape
    L, K, _ = k_LKD.shape
    out = torch.empty(T, H, D, dtype=torch.float64)
    for t in range(T):
        for h in range(H):
            seen = L - T + t + 1
            scores = k_LKD[:seen, h * K // H] @ q_THD[t, h] / D**0.5
            out[t, h] = scores.softmax(0) @ v_LKD[:seen, h * K // H]
    return out.reshape(T, H * D)


def tables_for(lengths: Sequence[int], block_size: int, seed: int) -> tuple[list[list[int]], int]:
    """Return block tables scattered over a pool with some blocks to spare, and the pool's size."""
    needed = [-(-length // block_size) for length in lengths]
    blocks = list(range(sum(needed) + 3))
    random.Random(seed).shuffle(blocks)
    return [[blocks.pop() for _ in range(count)] for count in needed], sum(needed) + 3


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(list(TOLERANCE)),
    shape=st.sampled_from([(1, 1, 2), (4, 2, 8), (9, 3, 64), (8, 1, 128), (6, 6, 24), (2, 1, 80)]),
    block_size=st.sampled_from([1, 3, 16, 20]),
    spans=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=5),
)
def test_a_ragged_step_equals_plain_attention(
    backend: type[TorchPagedAttention],
    seed: int,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    block_size: int,
    spans: list[tuple[int, int]],
) -> None:
    spans = [(start, 1 if start % 2 else count) for start, count in spans]
    spans.sort(key=lambda span: span[1] > 1)  # decodes first, as the runner puts them
    H, K, D = shape
    generator = torch.Generator().manual_seed(seed)
    lengths = [start + count for start, count in spans]
    tables, num_blocks = tables_for(lengths, block_size, seed)
    attention = backend(config_of(*shape), num_blocks, block_size, dtype, torch.device("cpu"))
    attention.kv.fill_(torch.nan)  # whatever is read without having been written shows
    keys = [torch.randn(n, 2, K, D, generator=generator).to(dtype) for n in lengths]
    for (start, _), table, kv in zip(spans, tables, keys, strict=True):
        for position in range(start):
            slot = table[position // block_size] * block_size + position % block_size
            attention.kv[1, :, slot] = kv[position]
    q = [torch.randn(count, H, D, generator=generator).to(dtype) for _, count in spans]
    new = torch.cat([kv[start:] for (start, _), kv in zip(spans, keys, strict=True)])
    attend = attention.plan(
        [Span(start, count, table) for (start, count), table in zip(spans, tables, strict=True)]
    )
    got = attend(1, torch.cat(q), new[:, 0], new[:, 1]).double()
    expected = torch.cat(
        [
            plain(each.double(), kv[:, 0].double(), kv[:, 1].double())
            for each, kv in zip(q, keys, strict=True)
        ]
    )
    error = ((got - expected).norm() / expected.norm()).item()
    assert error <= TOLERANCE[dtype]  # false for NaN too
    slots = torch.tensor(
        [t[p // block_size] * block_size + p % block_size
         for (s, n), t in zip(spans, tables, strict=True) for p in range(s, s + n)]
    )  # fmt: skip
    assert torch.equal(attention.kv[1][:, slots].transpose(0, 1), new)


needs_kernel = pytest.mark.skipif(not extension.is_available, reason="no C++ compiler")


def decode(lengths: Sequence[int], seed: int, scale: float = 1.0) -> tuple[object, ...]:
    """Return a layer of a filled cache, its tables, and one query for each sequence."""
    generator = torch.Generator().manual_seed(seed)
    tables, num_blocks = tables_for(lengths, 16, seed)
    width = max(map(len, tables))
    padded = torch.tensor([table + [0] * (width - len(table)) for table in tables])
    k, v = torch.randn(2, num_blocks * 16, 3, 64, generator=generator) * scale
    return torch.randn(len(lengths), 9, 64, generator=generator), k, v, padded


@needs_kernel
def test_a_decode_has_the_same_bits_in_any_batch_and_on_any_number_of_threads() -> None:
    lengths = [1, 15, 16, 17, 300, 64, 511, 33]
    q, k, v, table = decode(lengths, seed=1)
    kernel = torch.ops.mini_llm_server.paged_decode
    together = kernel(q, k, v, table, torch.tensor(lengths), 16, 0.125)
    for i, length in enumerate(lengths):
        alone = kernel(q[i : i + 1], k, v, table[i : i + 1], torch.tensor([length]), 16, 0.125)
        assert torch.equal(alone[0], together[i])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = kernel(q, k, v, table, torch.tensor(lengths), 16, 0.125)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, together)


@needs_kernel
@pytest.mark.parametrize("scale", [1e-30, 1.0, 100.0, 1e17])
def test_scores_of_any_size_neither_overflow_nor_vanish(scale: float) -> None:
    lengths = [40, 7, 100]
    q, k, v, table = decode(lengths, seed=2, scale=scale)
    got = torch.ops.mini_llm_server.paged_decode(q, k, v, table, torch.tensor(lengths), 16, 0.125)
    slots = (table[:, :, None] * 16 + torch.arange(16)).flatten(1)
    for i, length in enumerate(lengths):
        kv = [each[slots[i, :length]].double() for each in (k, v)]
        expected = plain(q[i : i + 1].double(), *kv)[0]
        assert ((got[i] - expected).norm() / expected.norm()).item() <= 1e-5


@needs_kernel
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_own_sequence_and_is_not_hidden(bad: float) -> None:
    lengths = [40, 7, 100]
    q, k, v, table = decode(lengths, seed=3)
    kernel = torch.ops.mini_llm_server.paged_decode
    clean = kernel(q, k, v, table, torch.tensor(lengths), 16, 0.125)
    k[table[1, 0] * 16 + 3] = bad
    k[table[0, 2] * 16 + 9] = bad  # behind the 40th token: nobody's
    got = kernel(q, k, v, table, torch.tensor(lengths), 16, 0.125)
    assert torch.equal(got[0], clean[0])
    assert torch.equal(got[2], clean[2])
    assert got[1].isnan().any()


def test_the_backend_is_the_one_that_this_machine_and_type_allow() -> None:
    for dtype, expected in ((torch.float32, BACKENDS[-1]), (torch.float16, TorchPagedAttention)):
        backend = make_attention(config_of(2, 1, 8), 4, 4, dtype, torch.device("cpu"))
        assert type(backend) is expected


@needs_kernel
def test_a_context_of_no_tokens_gives_zeros() -> None:
    q, k, v, table = decode([20, 5], seed=4)
    out = torch.ops.mini_llm_server.paged_decode(q, k, v, table, torch.tensor([20, 0]), 16, 0.125)
    assert out[0].isfinite().all()
    assert not out[1].any()


@needs_kernel
def test_a_step_may_be_attended_from_tensors_that_are_filled_anew() -> None:
    """As a CUDA graph does it."""
    config = config_of(4, 2, 8)
    attention = KernelPagedAttention(config, 6, 4, torch.float64, torch.device("cpu"))
    attention.kv.normal_()
    expected = attention.kv.clone()
    slots, lengths, table = torch.zeros(2).long(), torch.zeros(2).long(), torch.zeros(2, 3).long()
    attend = attention.decode(Decodes(slots, lengths, table))
    spans = [Span(5, 1, [3, 1]), Span(0, 1, [2])]
    q, k, v = torch.randn(2, 4, 8).double(), *torch.randn(2, 2, 2, 8).double()
    slots.copy_(torch.tensor([1 * 4 + 1, 2 * 4]))
    lengths.copy_(torch.tensor([6, 1]))
    table[0, :2], table[1, 0] = torch.tensor([3, 1]), 2
    got = attend(1, q, k, v)
    after, attention.kv = attention.kv, expected
    assert torch.equal(got, attention.plan(spans)(1, q, k, v))
    assert torch.equal(after, attention.kv)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_are_copied_in_all_layers_reading_before_writing(
    backend: type[TorchPagedAttention],
) -> None:
    attention = backend(config_of(2, 1, 8), 4, 2, torch.float32, torch.device("cpu"))
    attention.kv.normal_()
    before = attention.kv.clone()
    attention.copy_blocks([(0, 1), (1, 2)])
    after = attention.kv
    assert torch.equal(after[:, :, 2:4], before[:, :, 0:2])
    assert torch.equal(after[:, :, 4:6], before[:, :, 2:4])
    assert torch.equal(after[:, :, :2], before[:, :, :2])
    assert torch.equal(after[:, :, 6:], before[:, :, 6:])
