"""What only a GPU can show: large grids, streams, graphs, several devices, the sanitizer's run.

Under compute-sanitizer: compute-sanitizer --tool memcheck python -m pytest -m gpu -k sanitizer
"""

from __future__ import annotations

import pytest
import torch
from cuda_matmul_f32 import build_info, ffma_ceiling, kernels, matmul

NAMES = [kernel.name for kernel in kernels("cuda")]
each_kernel = pytest.mark.parametrize("kernel", [*NAMES, "auto"])
SLOW_RUNGS = ("naive", "coalesced", "shared_tile", "thread_column")


def integers(*shape: int, seed: int = 0, device: str = "cuda") -> torch.Tensor:
    """Small integers: sums of their products are exact in float32, so a result must be equal."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator, device=device).float()


def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.double() @ b.double()).float()


@pytest.mark.gpu
def test_every_rung_of_this_build_is_offered_or_says_what_it_lacks():
    built = {name for _, name, _ in build_info.module.cuda_kernels(-1)}
    assert set(NAMES) <= built
    assert NAMES[:3] == ["naive", "coalesced", "shared_tile"]
    for name in built - set(NAMES):
        with pytest.raises(ValueError, match=f"kernel '{name}' needs .* is not one: use 'auto'"):
            matmul(integers(2, 2), integers(2, 2), kernel=name)
    with pytest.raises(ValueError, match="no kernel 'fastest' for cuda tensors: use auto, naive"):
        matmul(integers(2, 2), integers(2, 2), kernel="fastest")


# The sizes that the benchmark measures, and some with more tiles than a grid's y may have.
LARGE = [
    (8191, 8191, 8191),
    (4095, 4097, 1023),
    (1000, 1000, 1000),
    (2304, 2304, 2304),
    (32768, 256, 1024),
    (4096, 4096, 64),
    (64, 4096, 4096),
    (16, 11008, 4096),
    (1, 4096, 4096),
    (4096, 1, 4096),
    (127, 129, 8191),
    (128, 128, 16384),
    (8191, 8193, 127),
    (70000, 3, 5),
    (3, 70000, 5),
    (70001, 33, 1),
    (2_100_000, 2, 3),
    (2, 2_100_000, 3),
    (129, 127, 16411),
    (1024, 1000, 1000),
    (2600, 513, 1001),
    (2049, 2052, 515),
]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_and_ragged_shapes_are_exact(shape):
    m, n, k = shape
    a, b = integers(m, k), integers(k, n, seed=1)
    expected = exact(a, b)
    for name in [*NAMES, "auto"]:
        if m * n * k < 2**37 or name not in SLOW_RUNGS:
            assert torch.equal(matmul(a, b, kernel=name), expected), name
    # Transposed in memory, one and both.
    a_t, b_t = a.t().contiguous().t(), b.t().contiguous().t()
    for name in [*NAMES, "auto"]:
        if m * n * k < 2**31:
            for x, y in ((a_t, b), (a, b_t), (a_t, b_t)):
                assert torch.equal(matmul(x, y, kernel=name), expected), name


@pytest.mark.gpu
@each_kernel
@pytest.mark.parametrize("tiles_over", [1, 3])
@pytest.mark.parametrize("k", [224, 1024, 1600])
def test_a_last_round_with_fewer_steps_than_multiprocessors(kernel, tiles_over, k):
    # For any tile of up to 128 x 256 that is one a multiprocessor, and a few more.
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    torch.full((1 << 26,), float("nan"), device="cuda")  # what scratch memory may hold
    a, b = integers((processors + tiles_over) * 128, k), integers(k, 256, seed=1)
    assert torch.equal(matmul(a, b, kernel=kernel), exact(a, b))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["hopper", "auto"])
@pytest.mark.parametrize("blocks", range(2, 9))
@pytest.mark.parametrize("n", [250, 251, 256])
@pytest.mark.parametrize("transposed", [False, True])
def test_few_tiles_that_several_blocks_share(kernel, blocks, n, transposed):
    if kernel not in (*NAMES, "auto"):
        pytest.skip(f"this GPU has no {kernel}")
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    m, k = 64 * (processors // blocks) - 3, 32 * 3 * blocks + 5  # in tiles of 64 x 256
    a, b = integers(m, k), integers(k, n, seed=1)
    on_rung = a.t().contiguous().t() if transposed else a
    around = torch.full((m + 2, n + 2), torch.nan, device="cuda")
    matmul(on_rung, b, out=around[1:-1, 1:-1], kernel=kernel)
    assert torch.equal(around[1:-1, 1:-1], exact(a, b))
    around[1:-1, 1:-1] = torch.nan
    assert around.isnan().all()


# Views of B that rung 9's copy engine cannot read: rearranged first where C is large enough.
UNREADABLE = {
    "odd stride": lambda b: b.contiguous(),
    "transposed": lambda b: b.mT.contiguous().mT,
    "both strides": lambda b: b.new_full((*b.shape, 2), torch.nan).select(-1, 1).copy_(b),
    "unaligned": lambda b: b.new_full((*b.shape[:-1], 516), torch.nan)[..., 1:].copy_(b),
}


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["async_pipeline", "hopper", "auto"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("view", UNREADABLE)
def test_a_b_that_is_rearranged_first(kernel, transposed, batch, view):
    if kernel not in (*NAMES, "auto"):
        pytest.skip(f"this GPU has no {kernel}")
    m, n, k = 2600, 515, 1001
    a = integers(*batch, m, k)
    b = UNREADABLE[view](integers(*batch, k, n, seed=1))
    on_rung = a.mT.contiguous().mT if transposed else a
    assert torch.equal(matmul(on_rung, b, kernel=kernel), exact(a, b))


@pytest.mark.gpu
@each_kernel
def test_aligned_views_that_overlap(kernel):
    # Adjacent lines on 16 bytes, but each step of K begins inside the last one's or on it.
    flat = integers(8192)
    windows = flat.as_strided((300, 260), (4, 1))
    same = flat[:260].expand(300, 260)
    square = integers(300, 300, seed=1)
    for view in (windows, same):
        assert torch.equal(matmul(square, view, kernel=kernel), exact(square, view))
        assert torch.equal(matmul(view.t(), square, kernel=kernel), exact(view.t(), square))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(1, 4096, 2048), (5, 300, 700), (16, 4096, 512), (1000, 1000, 1000)], ids=str
)
def test_the_choice_does_not_depend_on_what_was_seen_before(shape):
    m, n, k = shape
    a, b = torch.randn(m, k, device="cuda"), torch.randn(k, n, device="cuda")
    layouts = {
        name: (lambda x, t=t: x.t().contiguous().t() if t else x)
        for name, t in (("rows", False), ("columns", True))
    }
    first = {name: matmul(a, view(b)) for name, view in layouts.items()}
    for other in range(2000):  # more shapes than any memory of choices holds
        matmul(a[:, : 1 + other % 97], b[: 1 + other % 97, : 1 + other // 97])
    for name, view in reversed(layouts.items()):
        assert torch.equal(matmul(a, view(b)), first[name])


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
def test_many_products_in_a_batch(kernel):
    a, b = integers(70_001, 3, 5), integers(70_001, 5, 2, seed=1)  # beyond a grid's z and y
    assert torch.equal(matmul(a, b, kernel=kernel), exact(a, b))
    a, b = integers(300, 129, 65), integers(65, 70, seed=1).expand(300, 65, 70)
    assert torch.equal(matmul(a, b, kernel=kernel), exact(a, b))


@pytest.mark.gpu
@each_kernel
@pytest.mark.parametrize("shape", [(500, 400, 300), (64, 64, 8192), (1, 1000, 3000)], ids=str)
def test_runs_on_the_current_stream(kernel, shape):
    m, n, k = shape
    a, b = integers(m, k), integers(k, n, seed=1)
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
def test_streams_side_by_side_do_not_share_scratch_memory(kernel):
    pairs = [(integers(96, 4096, seed=i), integers(4096, 80, seed=i + 50)) for i in range(8)]
    expected = [exact(a, b) for a, b in pairs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in pairs]
    results = []
    for _ in range(5):
        for stream, (a, b) in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                results.append(matmul(a, b, kernel=kernel))
    torch.cuda.synchronize()
    assert all(torch.equal(c, expected[i % len(pairs)]) for i, c in enumerate(results))


@pytest.mark.gpu
@each_kernel
@pytest.mark.parametrize("shape", [(129, 33, 65), (64, 64, 8192), (1, 1000, 3000)], ids=str)
def test_is_captured_in_a_cuda_graph(kernel, shape):
    m, n, k = shape
    a, b = integers(m, k), integers(k, n, seed=1)
    out = torch.empty(2, m, n, device="cuda")
    matmul(a, b, kernel=kernel)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        c = matmul(a, b, kernel=kernel)
        matmul(a.expand(2, m, k), b, out=out, kernel=kernel)
    for seed in (2, 3):
        a.copy_(integers(m, k, seed=seed))
        c.zero_()
        out.zero_()
        graph.replay()
        assert torch.equal(c, exact(a, b))
        assert torch.equal(out, exact(a, b).expand(2, m, n))


# Rungs 9 to 11 begin while the kernel before them ends.
@pytest.mark.gpu
@each_kernel
@pytest.mark.parametrize("shape", [(64, 512, 1024), (1, 1000, 3000), (33, 130, 4001)], ids=str)
def test_waits_for_whatever_was_launched_before_in_a_graph_too(kernel, shape):
    m, n, k = shape
    a, b = integers(m, k), integers(k, n, seed=1)
    right = exact(a, b)
    one, other = torch.cuda.Stream(), torch.cuda.Stream()

    def fork_and_join() -> list[torch.Tensor]:
        here = torch.cuda.current_stream()
        one.wait_stream(here)
        other.wait_stream(here)
        found = []
        with torch.cuda.stream(one):  # behind a kernel of torch's that writes an operand
            x = (a + 1) - 1
            found.append(matmul(x, b, kernel=kernel))
        with torch.cuda.stream(other):  # behind a copy, and behind another product
            y = b.clone()
            found += [matmul(a, y, kernel=kernel) for _ in range(2)]
        here.wait_stream(one)
        here.wait_stream(other)  # behind two streams at once
        found.append(matmul(x, y, kernel=kernel))
        x.zero_()  # only then
        return found

    for _ in range(10):
        assert all(torch.equal(c, right) for c in fork_and_join())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = fork_and_join()
    for _ in range(10):
        for c in found:
            c.fill_(torch.nan)
        graph.replay()
        assert all(torch.equal(c, right) for c in found)


@pytest.mark.gpu
@each_kernel
@pytest.mark.parametrize("shape", [(257, 300, 1000), (64, 64, 8192), (5, 2000, 3000)], ids=str)
def test_same_bits_on_every_run_and_in_a_graph(kernel, shape):
    m, n, k = shape
    a, b = torch.randn(m, k, device="cuda"), torch.randn(k, n, device="cuda")
    first = matmul(a, b, kernel=kernel)
    busy = torch.cuda.Stream()
    for _ in range(20):
        with torch.cuda.stream(busy):  # blocks then start in another order
            matmul(b.t(), a.t(), kernel=kernel)
        assert torch.equal(matmul(a, b, kernel=kernel), first)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        c = matmul(a, b, kernel=kernel)
    graph.replay()
    assert torch.equal(c, first)


@pytest.mark.multigpu
@each_kernel
def test_runs_on_the_tensors_gpu_and_not_the_current_one(kernel):
    with torch.cuda.device(0):
        for m, n, k in ((77, 33, 55), (64, 64, 8192)):
            a, b = integers(m, k, device="cuda:1"), integers(k, n, seed=1, device="cuda:1")
            c = matmul(a, b, kernel=kernel)
            assert c.device == torch.device("cuda:1")
            assert torch.cuda.current_device() == 0
            assert torch.equal(c, exact(a, b))


@pytest.mark.multigpu
def test_two_gpus_work_at_once():
    pairs = [
        (integers(512, 4096, device=d), integers(4096, 512, device=d)) for d in ("cuda:0", "cuda:1")
    ]
    results = [matmul(a, b) for _ in range(20) for a, b in pairs]
    for i, c in enumerate(results):
        assert torch.equal(c, exact(*pairs[i % 2]))


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
def test_no_more_rounding_than_torch(kernel):
    for m, n, k in ((512, 512, 512), (300, 200, 8192), (4, 4096, 4096)):
        a, b = torch.randn(m, k, device="cuda"), torch.randn(k, n, device="cuda")
        reference = a.double() @ b.double()
        ours, torchs = (
            ((c.double() - reference).norm() / reference.norm()).item()
            for c in (matmul(a, b, kernel=kernel), torch.matmul(a, b))
        )
        # One sum in order of k is the definition's own rounding: the first rungs do that.
        limit = 1.5 * torchs if kernel == "auto" else 2.0 * k**0.5 * 2.0**-24
        assert ours <= limit


@pytest.mark.gpu
def test_the_ffma_ceiling_is_below_what_the_gpus_units_could_do():
    properties = torch.cuda.get_device_properties(0)
    # 128 FMA units per multiprocessor from compute capability 8.6 on, and in 9.0; 64 in 8.0.
    units = 64 if (properties.major, properties.minor) == (8, 0) else 128
    most = 2 * units * properties.multi_processor_count * 3.0e9 * 1e-12  # no GPU clocks above 3 GHz
    assert 0.1 * most < ffma_ceiling() < most


# Few, small, and checked on the CPU: the sanitizer makes a kernel up to a thousand times slower.
SANITIZED = [  # batch, M, N, K, transposed
    (1, 31, 33, 35, False),
    (1, 130, 129, 67, False),
    (1, 130, 129, 67, True),
    (1, 64, 128, 64, True),
    (1, 7, 9, 0, False),
    (1, 1, 300, 130, False),
    (1, 300, 1, 130, True),
    (1, 4, 200, 260, False),
    (1, 40, 36, 3000, False),
    (3, 33, 20, 40, True),
]


@pytest.mark.gpu
@each_kernel
@pytest.mark.parametrize("case", SANITIZED, ids=str)
def test_sanitizer_small_and_ragged(kernel, case):
    _check_case(kernel, *case)


# The smallest for which rung 9 rearranges B; too long for the lower rungs under racecheck.
@pytest.mark.gpu
@pytest.mark.skipif("hopper" not in NAMES, reason="this GPU has no rung that rearranges B")
@pytest.mark.parametrize("transposed", [False, True])
def test_sanitizer_b_rearranged(transposed):
    _check_case("hopper", 1, 33, 5, 22_000, transposed)


def _check_case(kernel: str, batch: int, m: int, n: int, k: int, transposed: bool) -> None:
    a = integers(batch, m, k, device="cpu")
    b = integers(batch, k, n, seed=1, device="cpu")
    on_gpu = [x.mT.contiguous().cuda().mT if transposed else x.cuda() for x in (a, b)]
    assert torch.equal(matmul(*on_gpu, kernel=kernel).cpu(), exact(a, b))
