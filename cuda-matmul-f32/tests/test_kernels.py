"""Every rung gives the exact product on every shape, layout and special value."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from cuda_matmul_f32 import matmul
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

SHAPES = [
    (1, 1, 1),
    (2, 3, 4),
    (7, 11, 13),
    (31, 37, 41),
    (64, 64, 64),
    (1, 259, 5),
    (257, 1, 3),
    (33, 65, 1),
    (1, 1, 4099),
    (127, 129, 8191),
    # One past the CPU's blocks of K (256), of N (2048 with AVX-512) and several of M (192).
    (13, 37, 257),
    (3, 2049, 513),
    (1537, 33, 257),
    (385, 1030, 31),
    # Around the GPU's tiles (64, 128, 256), its steps of K (8, 16, 32) and vectors of four.
    (128, 128, 32),
    (129, 257, 33),
    (255, 127, 36),
    (65, 132, 8),
    (130, 260, 7),
    # One side short, and a long K for a small C.
    (1, 512, 768),
    (512, 1, 768),
    (2, 130, 1000),
    (8, 333, 512),
    (16, 688, 256),
    (64, 256, 256),
    (3, 3, 16384),
    (4, 1031, 700),
    (1031, 3, 700),
]
EMPTY = [(0, 5, 7), (5, 0, 7), (0, 0, 3), (0, 0, 0), (5, 7, 0), (1, 1, 0), (33, 129, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_is_exact(rung, shape):
    m, n, k = shape
    rung.check_exact(rung.integers(m, k), rung.integers(k, n, seed=1))


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty_sizes_give_empty_or_zeros(rung, shape):
    m, n, k = shape
    torch.full((m, n), float("nan"), device=rung.device)  # likely what torch.empty hands out next
    rung.check_exact(rung.integers(m, k), rung.integers(k, n))


@pytest.mark.parametrize(("m", "n", "k"), [(64, 48, 17), (61, 67, 1021), (16, 16, 16384)])
def test_rounding_error_is_within_the_documented_bound(rung, m, n, k):
    a, b = rung.normals(m, k), rung.normals(k, n, seed=1)
    exact = a.cpu().double() @ b.cpu().double()
    scale = a.cpu().double().abs() @ b.cpu().double().abs()
    error = (rung(a, b).cpu().double() - exact).abs()
    # Documented: K fused or separate multiply-adds in any order stay below this (Higham 2002, 3.1).
    assert (error <= k * 2.0**-23 * scale).all()
    # What random signs give, far below: an error that grows like sqrt(K). TF32 would fail here.
    assert error.norm() <= 2.0 * k**0.5 * 2.0**-24 * exact.norm()


def _with_specials(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    out = x.cpu().clone()
    for value in (float("nan"), float("inf"), -float("inf"), 0.0):
        rows = torch.randint(x.shape[0], (2,), generator=generator)
        cols = torch.randint(x.shape[1], (2,), generator=generator)
        out[rows, cols] = value
    return out.to(x.device)


@pytest.mark.parametrize("shape", [(17, 19, 23), (45, 70, 300)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_nan_and_inf_come_out_where_torch_has_them(rung, shape, seed):
    m, n, k = shape
    a = _with_specials(rung.integers(m, k, seed=seed), seed)
    b = _with_specials(rung.integers(k, n, seed=seed + 50), seed + 100)
    rung.check_exact(a, b)


def test_zero_times_inf_is_not_skipped(rung):
    a = torch.zeros(3, 5, device=rung.device)
    b = torch.ones(5, 4, device=rung.device)
    b[2, 1] = float("inf")
    c = rung(a, b)
    assert c[:, 1].isnan().all()
    assert (c[:, [0, 2, 3]] == 0).all()


def test_inf_beside_the_edge_does_not_leak_out_of_its_row_and_column(rung):
    # Tiles are padded with zeros past the edge; 0 * Inf there must not reach a stored output.
    a, b = rung.integers(33, 35), rung.integers(35, 37, seed=1)
    a[-1, -1] = float("inf")
    b[-1, -1] = float("nan")
    rung.check_exact(a, b)


def test_a_long_sum_keeps_denormals(rung):
    # 5000 products of 2^-149 each, which flush-to-zero arithmetic would lose.
    a = torch.full((33, 5000), 2.0**-75, device=rung.device)
    b = torch.full((5000, 35), 2.0**-74, device=rung.device)
    assert (rung(a, b) == 5000 * 2.0**-149).all()
    denormal = torch.full((33, 35), 2.0**-149, device=rung.device)
    ones = torch.ones(35, 7, device=rung.device)
    assert (rung(denormal, ones) == 35 * 2.0**-149).all()


def test_overflow_and_denormals_round_like_ieee(rung):
    a = torch.tensor([[3e38], [1e-30], [-1e-45], [1.0]], device=rung.device)
    b = torch.tensor([[10.0, 1e-10, 1e38, 1e-42, 0.0]], device=rung.device)
    c = rung(a, b)
    expected = (a.cpu().double() @ b.cpu().double()).float()
    assert torch.equal(c.cpu(), expected)
    assert c[0, 0] == float("inf")
    assert 0 < c[1, 1] < torch.finfo(torch.float32).tiny


VIEWS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "every_other": lambda x: x.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3],
    "inside_a_larger_one": lambda x: F.pad(x, (3, 5, 1, 2), value=9.0)[1:-2, 3:-5],
    "one_row_expanded": lambda x: x[:1].expand_as(x),
    "one_column_expanded": lambda x: x[:, :1].expand_as(x),
    "one_value_expanded": lambda x: x[:1, :1].expand_as(x),
    "overlapping_windows": lambda x: x.flatten().as_strided(x.shape, (1, 1)),
    "negated_lazily": torch._neg_view,
}


@pytest.mark.parametrize("view_b", VIEWS)
@pytest.mark.parametrize("view_a", VIEWS)
def test_views_of_any_strides(rung, view_a, view_b):
    a = VIEWS[view_a](rung.integers(35, 67))
    b = VIEWS[view_b](rung.integers(67, 41, seed=1))
    rung.check_exact(a, b)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_shapes_and_strides(rung, data):
    m, n, k = (data.draw(st.integers(0, 140), label=x) for x in "mnk")

    def draw(rows: int, cols: int, seed: int) -> Tensor:
        step_r, step_c = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        if data.draw(st.booleans(), label="transposed"):
            return rung.integers(cols * step_c, rows * step_r, seed=seed).t()[::step_r, ::step_c]
        return rung.integers(rows * step_r, cols * step_c, seed=seed)[::step_r, ::step_c]

    rung.check_exact(draw(m, k, 0), draw(k, n, 1))


def test_values_in_front_and_behind_are_not_read(rung):
    # Rows that start on any of the 4-byte places within 16, with NaN all around.
    for offset, m, n, k in ((1, 33, 35, 37), (2, 64, 64, 64), (3, 130, 5, 20), (5, 1, 129, 31)):
        views = []
        for rows, cols, seed in ((m, k, 0), (k, n, 1)):
            whole = torch.full((rows + 2, cols + 9), float("nan"), device=rung.device)
            view = whole[1:-1, offset : offset + cols]
            view.copy_(rung.integers(rows, cols, seed=seed))
            views.append(view)
        rung.check_exact(*views)


def test_inputs_are_left_alone(rung):
    a, b = rung.integers(40, 50), rung.integers(50, 60, seed=1)
    before = a.clone(), b.clone()
    rung(a, b)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_a_matrix_times_itself(rung):
    a = rung.integers(53, 53)
    rung.check_exact(a, a)
    rung.check_exact(a, a.t())


def test_same_bits_on_every_run(rung):
    a, b = rung.normals(200, 700), rung.normals(700, 150, seed=1)
    first = rung(a, b)
    assert all(torch.equal(first, rung(a, b)) for _ in range(5))


def test_calls_from_several_python_threads_do_not_disturb_each_other(rung):
    # Torch lets go of the interpreter lock during the call, and packing keeps scratch memory.
    pairs = [(rung.integers(61, 300 + i, seed=i), rung.integers(300 + i, 47)) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: rung.check_exact(*pair), pairs * 4))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((500, 700), (700, 600)),
        ((1, 2000), (2000, 3001)),
        ((3, 2000), (3001, 2000)),
        ((3001, 2000), (2000, 1)),
        ((5, 2, 900), (5, 900, 1100)),
    ],
    ids=str,
)
def test_same_bits_for_any_number_of_threads(a, b):
    a, b = torch.randn(a), torch.randn(b)
    b = b.mT if b.shape[-2] != a.shape[-1] else b
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(matmul(a, b))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
