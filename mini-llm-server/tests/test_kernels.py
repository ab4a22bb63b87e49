"""The C++ operators against float64, on ragged and on hostile input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_llm_server import _build, extension, kernels
from mini_llm_server.model import linear
from mini_llm_server.model.elementwise import KernelElementwise, TorchElementwise, make_elementwise
from mini_llm_server.model.linear import Linear

pytestmark = pytest.mark.skipif(not extension.is_available, reason="no C++ compiler")
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}
dtypes = st.sampled_from(list(TOLERANCE))


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    if not expected.numel():
        return 0.0 if got.shape == expected.shape else float("nan")
    # What is smaller than float32's numbers may be 0 in it.
    return float((got.double() - expected).norm() / expected.norm().clamp_min(1e-24))


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.one_of(st.integers(0, 14), st.integers(0, 120)),
    outputs=st.integers(1, 40).map(lambda o: 4 * o),
    columns=st.integers(1, 70).map(lambda k: 16 * k),
    seed=st.integers(0, 10**6),
)
def test_skinny_products_equal_float64(rows: int, outputs: int, columns: int, seed: int) -> None:
    x, w = randn(rows, columns, seed=seed), randn(outputs, columns, seed=seed + 1)
    got = torch.ops.mini_llm_server.skinny_linear(x, w)
    assert error(got, x.double() @ w.double().T) <= 2e-6


@pytest.mark.parametrize("columns", [576, 1536])
def test_a_row_has_the_same_bits_among_any_others_and_on_any_number_of_threads(
    columns: int,
) -> None:
    x, w = randn(96, columns, seed=1), randn(960, columns, seed=2)
    product = torch.ops.mini_llm_server.skinny_linear
    whole = product(x, w)
    for first, count in ((0, 1), (5, 1), (3, 2), (7, 6), (0, 7), (10, 33), (1, 95)):
        assert torch.equal(product(x[first : first + count], w), whole[first : first + count])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(product(x, w), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    x, w = randn(9, 32, seed=1), randn(8, 32, seed=2)
    clean = torch.ops.mini_llm_server.skinny_linear(x, w)
    x[4, 17] = bad
    got = torch.ops.mini_llm_server.skinny_linear(x, w)
    assert not got[4].isfinite().any()
    keep = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(got[keep], clean[keep])


@pytest.mark.parametrize("way", list(linear.Way))
@pytest.mark.parametrize("rows", [1, 5, 97, 200])
@pytest.mark.parametrize("has_bias", [False, True])
def test_every_way_to_multiply_gives_the_product(
    monkeypatch: pytest.MonkeyPatch, way: linear.Way, rows: int, has_bias: bool
) -> None:
    natural = linear._way(torch.empty(64, 48))
    if way is linear.Way.PACKED and natural is linear.Way.TORCH:
        pytest.skip("oneDNN packs nothing on this machine")
    monkeypatch.setattr(linear, "_way", lambda weight: way)
    x, w, bias = randn(rows, 48, seed=1), randn(64, 48, seed=2), randn(64, seed=3)
    got = Linear(w, bias if has_bias else None)(x)
    expected = x.double() @ w.double().T + (bias.double() if has_bias else 0)
    assert error(got, expected) <= 2e-6


@pytest.mark.parametrize("shape", [(6, 16), (8, 20), (3, 5)])
def test_a_weight_that_is_no_whole_number_of_tiles_is_multiplied_all_the_same(
    shape: tuple[int, int],
) -> None:
    x, w = randn(7, shape[1], seed=1), randn(*shape, seed=2)
    assert error(Linear(w)(x), x.double() @ w.double().T) <= 2e-6


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 100),
    dtype=dtypes,
    adds=st.booleans(),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 10**6),
)
def test_the_norm_equals_float64(
    rows: int, width: int, dtype: torch.dtype, adds: bool, size: float, seed: int
) -> None:
    x = (size * randn(rows, width, seed=seed)).to(dtype)
    delta = (size * randn(rows, width, seed=seed + 1)).to(dtype) if adds else None
    weight = randn(width, seed=seed + 2, dtype=dtype)
    total = x.double() if delta is None else x.double() + delta.double()
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    summed, normed = KernelElementwise().add_norm(x, delta, weight, 1e-5)
    assert error(summed, total) <= TOLERANCE[dtype]
    assert error(normed, expected) <= TOLERANCE[dtype]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 100),
    dtype=dtypes,
    size=st.sampled_from([1e-4, 1.0, 30.0, 200.0]),
    seed=st.integers(0, 10**6),
)
def test_the_gated_activation_equals_float64(
    rows: int, width: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    gate_up = (size * randn(rows, 2 * width, seed=seed)).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    expected = gate * torch.sigmoid(gate) * up
    assert error(KernelElementwise().silu_mul(gate_up), expected) <= TOLERANCE[dtype]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    heads=st.integers(1, 5),
    half=st.integers(1, 40),
    dtype=dtypes,
    seed=st.integers(0, 10**6),
)
def test_the_rotation_equals_float64_in_part_of_a_wider_row(
    rows: int, heads: int, half: int, dtype: torch.dtype, seed: int
) -> None:
    D = 2 * half
    wide = randn(rows, heads + 2, D, seed=seed, dtype=dtype)
    before = wide.clone()
    angle = 10 * randn(rows, 1, half, seed=seed + 1).double()
    cos = torch.cat([angle.cos(), angle.cos()], -1).to(dtype)
    sin = torch.cat([-angle.sin(), angle.sin()], -1).to(dtype)
    expected = TorchElementwise().rotate(before[:, :heads].double(), cos.double(), sin.double())
    got = KernelElementwise().rotate(wide[:, :heads], cos, sin)
    assert error(got, expected) <= TOLERANCE[dtype]
    assert torch.equal(wide[:, heads:], before[:, heads:])


def test_not_finite_values_pass_through_the_small_operators_in_their_own_rows() -> None:
    ops = KernelElementwise()
    x = randn(3, 20, seed=1)
    x[1, 18] = torch.nan
    _, normed = ops.add_norm(x.clone(), None, torch.ones(20), 1e-5)
    assert normed[1].isnan().all()
    assert normed[[0, 2]].isfinite().all()
    gate_up = randn(3, 40, seed=2)
    gate_up[1, 3] = torch.nan
    gate_up[2, 25] = torch.inf
    out = ops.silu_mul(gate_up)
    assert out[1, 3].isnan()
    assert not out[2, 5].isfinite()
    assert out.isfinite().sum() == out.numel() - 2


def test_the_smallest_and_largest_gates() -> None:
    gate = torch.tensor([[-1e30, -100.0, -87.5, -0.0, 87.5, 1e30, 1.0, 1.0]])
    out = KernelElementwise().silu_mul(torch.cat([gate, torch.ones_like(gate)], -1))
    expected = gate.double() * torch.sigmoid(gate.double())
    assert torch.allclose(out.double(), expected, rtol=1e-6, atol=1e-35)


def test_types_without_a_kernel_take_torchs_operators() -> None:
    assert isinstance(make_elementwise(torch.float16, torch.device("cpu")), TorchElementwise)
    assert isinstance(make_elementwise(torch.int32, torch.device("cuda")), TorchElementwise)
    assert isinstance(make_elementwise(torch.float32, torch.device("meta")), TorchElementwise)
    assert isinstance(make_elementwise(torch.float32, torch.device("cpu")), KernelElementwise)


def test_a_gpu_without_nvcc_takes_torchs_operators_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_build, "cuda_missing", lambda: "nvcc was not found")
    kernels._are_built.cache_clear()
    with pytest.warns(UserWarning, match="nvcc was not found; torch's own kernels are used"):
        ops = make_elementwise(torch.bfloat16, torch.device("cuda"))
    kernels._are_built.cache_clear()
    assert isinstance(ops, TorchElementwise)
