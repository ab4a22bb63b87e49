"""What only a GPU can show: large grids, streams, graphs, several devices, the sanitizer's run.

Under compute-sanitizer: compute-sanitizer --tool memcheck python -m pytest -m gpu -k sanitizer
"""

from __future__ import annotations

import pytest
import torch
from cuda_matmul_f32 import kernels, matmul

NAMES = [kernel.name for kernel in kernels("cuda")]
each_kernel = pytest.mark.parametrize("kernel", NAMES)


def integers(*shape: int, seed: int = 0, device: str = "cuda") -> torch.Tensor:
    """Small integers: sums of their products are exact in float32, so a result must be equal."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator, device=device).float()


def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.double() @ b.double()).float()


@pytest.mark.gpu
def test_this_build_has_the_cuda_ladder():
    assert NAMES == ["naive", "coalesced", "shared_tile", "register_tile"]


@pytest.mark.gpu
@each_kernel
@pytest.mark.parametrize(
    "shape",
    [
        (8191, 8193, 127),
        (70000, 3, 5),
        (3, 70000, 5),
        (70001, 33, 1),
        (2_100_000, 2, 3),  # more than 65535 tiles of 32 in M
        (2, 2_100_000, 3),
        (129, 127, 16411),
        (1024, 1000, 1000),
    ],
    ids=str,
)
def test_large_and_ragged_shapes_are_exact(kernel, shape):
    m, n, k = shape
    a, b = integers(m, k), integers(k, n, seed=1)
    assert torch.equal(matmul(a, b, kernel=kernel), exact(a, b))


@pytest.mark.gpu
@each_kernel
def test_more_than_two_to_the_31_elements(kernel):
    rows, cols = 65_537, 32_771  # C has 2^31 + 262,219 elements, so 32-bit offsets wrap
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of free GPU memory")
    a, b = integers(rows, 2), integers(2, cols, seed=1)
    c = matmul(a, b, kernel=kernel)
    for part in (slice(0, 64), slice(rows - 64, rows)):
        assert torch.equal(c[part], exact(a[part], b))


@pytest.mark.gpu
@each_kernel
def test_runs_on_the_current_stream(kernel):
    a, b = integers(500, 300), integers(300, 400, seed=1)
    expected = exact(a, b)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(a)
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would not wait for this
        late.copy_(a)
        c = matmul(late, b, kernel=kernel)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(c, expected)


@pytest.mark.gpu
@each_kernel
def test_is_captured_in_a_cuda_graph(kernel):
    a, b = integers(129, 65), integers(65, 33, seed=1)
    matmul(a, b, kernel=kernel)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        c = matmul(a, b, kernel=kernel)
    for seed in (2, 3):
        a.copy_(integers(129, 65, seed=seed))
        c.zero_()
        graph.replay()
        assert torch.equal(c, exact(a, b))


@pytest.mark.multigpu
@each_kernel
def test_runs_on_the_tensors_gpu_and_not_the_current_one(kernel):
    with torch.cuda.device(0):
        a, b = integers(77, 55, device="cuda:1"), integers(55, 33, seed=1, device="cuda:1")
        c = matmul(a, b, kernel=kernel)
        assert c.device == torch.device("cuda:1")
        assert torch.cuda.current_device() == 0
        assert torch.equal(c, exact(a, b))


@pytest.mark.multigpu
def test_two_gpus_are_not_mixed():
    with pytest.raises(ValueError, match="a is on cuda:0 but b on cuda:1"):
        matmul(integers(2, 2, device="cuda:0"), integers(2, 2, device="cuda:1"))


@pytest.mark.gpu
def test_tf32_settings_do_not_reach_our_kernels():
    a, b = torch.randn(256, 4096, device="cuda"), torch.randn(4096, 256, device="cuda")
    before = matmul(a, b)
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert torch.equal(matmul(a, b), before)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


@pytest.mark.gpu
@each_kernel
@pytest.mark.parametrize("shape", [(1, 1, 1), (31, 33, 35), (64, 32, 96), (5, 70, 3), (7, 9, 0)])
@pytest.mark.parametrize("transposed", [False, True])
def test_sanitizer_small_and_ragged(kernel, shape, transposed):
    m, n, k = shape
    a, b = integers(m, k), integers(k, n, seed=1)
    if transposed:
        a, b = a.t().contiguous().t(), b.t().contiguous().t()
    assert torch.equal(matmul(a, b, kernel=kernel), exact(a, b))
