"""torchrun --nproc-per-node 2 peer_checks.py: the all-reduce through peer memory, on GPUs."""

import random

import torch
import torch.distributed as dist
from dist_playground.ending import run_and_exit
from dist_playground.grid import Axis, Grid
from dist_playground.process_group import process_group
from dist_playground.scratch.copy_engines import STAGE, Arena
from dist_playground.scratch.peer_memory import DTYPES, TILE, PeerMemory
from dist_playground.world import read_world
from torch import Tensor


def numbers(numel: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(numel, generator=generator, device="cuda", dtype=torch.float64) * 100
    return x.to(dtype)


def same(x: Tensor, y: Tensor) -> Tensor:
    return ((x == y) | (x.isnan() & y.isnan())).all()


def every_type_and_length(peers: PeerMemory, axis: Axis) -> None:
    """Two numbers have one sum in any order, rounded once: NCCL's, bit for bit. More ranks: nearly.

    Lengths around a tile's, and beginnings that are aligned to nothing.
    """
    for dtype in sorted(DTYPES, key=str):
        tile, most = TILE // dtype.itemsize, peers.most // dtype.itemsize
        for numel in (
            1,
            3,
            1001,
            tile - 1,
            tile,
            tile + 1,
            5 * tile + 7,
            peers.most // dtype.itemsize,
        ):
            for begin in (0, 1):
                if numel + begin > most:
                    continue
                x = numbers(numel + begin, dtype, numel + axis.index)
                if dtype.is_floating_point and numel > 2:
                    x[begin + numel // 2] = (float("nan"), float("inf"))[axis.index % 2]
                    x[begin] = float("inf") if axis.index == 0 else 1.0
                ours, theirs = x.clone(), x.clone()
                every = [torch.empty_like(x[begin:]) for _ in range(axis.size)]
                dist.all_gather(every, x[begin:].contiguous())
                dist.all_reduce(theirs[begin:])
                assert peers.fits(ours[begin:])
                peers.all_reduce(ours[begin:])
                if axis.size == 2:
                    assert same(ours[begin:], theirs[begin:]), (dtype, numel, begin)
                assert same(ours[:begin], x[:begin])
                largest = torch.stack(every).amax(0)  # NaN if one is
                ours = x.clone()
                peers.all_reduce(ours[begin:], maximum=True)
                assert same(ours[begin:], largest), (dtype, numel, begin)


def a_thousand_times(peers: PeerMemory, axis: Axis) -> None:
    """Lengths of all kinds after one another, and ranks that come late in turns."""
    draw = random.Random(0)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for turn in range(1000):
        numel = draw.choice((1, 7, 4096, draw.randrange(1, peers.most // 4)))
        late = draw.randrange(axis.size * 2)
        every = [numbers(numel, torch.float32, turn * axis.size + r) for r in range(axis.size)]
        x = every[axis.index]
        reference = x.clone()
        dist.all_reduce(reference)
        if late == axis.index:
            torch.cuda._sleep(100_000)
        peers.all_reduce(x)
        wrong += ~same(x, reference) if axis.size == 2 else ~torch.isclose(x, reference).all()
    assert wrong.item() == 0, f"{wrong.item()} of 1000 sums are wrong"


def in_a_graph(peers: PeerMemory, axis: Axis) -> None:
    """An odd number of calls in a graph: its buffers must take turns over replays, too."""
    x = numbers(5000, torch.int64, axis.index)
    start = x.clone()
    dist.all_reduce(start)
    peers.all_reduce(x.clone())
    graph = torch.cuda.CUDAGraph()
    static = x.clone()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(3):
            peers.all_reduce(static)
    for turn in range(100):
        static.copy_(x)
        if turn % 3 == axis.index:
            torch.cuda._sleep(50_000)
        graph.replay()
        eager = x.clone()
        peers.all_reduce(eager)
        assert torch.equal(static, start * axis.size**2), turn
        assert torch.equal(eager, start), turn


def large_sums(axis: Axis) -> None:
    """By the copy engines: two buffers in one memory, in turns, with a rank that comes late."""
    numels = [8 * axis.size, 3 * STAGE * axis.size + 8 * axis.size]
    arena = Arena.if_possible(axis, torch.device("cuda", axis.index), sum(numels), torch.float32)
    assert arena is not None
    begins = [0, numels[0]]
    for turn in range(20):
        for begin, numel in zip(begins, numels, strict=True):
            mine = arena.flat[begin : begin + numel]
            mine.copy_(numbers(numel, torch.float32, turn * axis.size + axis.index))
            mine[numel // 2] = float("nan")
            reference = mine.clone()
            dist.all_reduce(reference)
            if turn % (axis.size + 1) == axis.index:
                torch.cuda._sleep(2_000_000)
            if turn % 2:
                arena.all_reduce(begin, begin + numel).wait()
            else:
                arena.reduce_scatter(begin, begin + numel).wait()
                length = numel // axis.size
                part = slice(axis.index * length, (axis.index + 1) * length)
                mine, reference = mine[part], reference[part]
            if axis.size == 2:
                assert same(mine, reference), (turn, begin)
            else:
                assert torch.allclose(mine, reference, equal_nan=True), (turn, begin)


def large_gathers(axis: Axis) -> None:
    """By the copy engines: each rank's float32 numbers, rounded, in every rank's vector."""
    numel = 1024 * axis.size
    device = torch.device("cuda", axis.index)
    arena = Arena.if_possible(axis, device, 2 * numel, torch.bfloat16)
    assert arena is not None
    for turn in range(20):
        every = [numbers(1024, torch.float32, turn * axis.size + r) for r in range(axis.size)]
        if turn % (axis.size + 1) == axis.index:
            torch.cuda._sleep(2_000_000)
        arena.all_gather(numel, 2 * numel, every[axis.index]).wait()
        assert torch.equal(arena.flat[numel:], torch.cat(every).bfloat16()), turn
        assert not arena.flat[:numel].any()


def what_does_not_fit(peers: PeerMemory) -> None:
    assert not peers.fits(torch.empty(peers.most + 1, dtype=torch.uint8, device="cuda"))
    assert not peers.fits(torch.empty(peers.most // 4 + 1, device="cuda"))
    assert not peers.fits(torch.empty(0, device="cuda"))
    assert not peers.fits(torch.empty(4, 4, device="cuda").T[:2])
    assert not peers.fits(torch.empty(4, dtype=torch.bool, device="cuda"))


def main() -> None:
    world = read_world("cuda")
    with process_group(world, timeout_s=60):
        axis = Grid({"data": world.size}, world.rank).data
        peers = PeerMemory.if_possible(axis, world.device)
        assert peers is not None, "these GPUs cannot map each other's memory"
        what_does_not_fit(peers)
        every_type_and_length(peers, axis)
        a_thousand_times(peers, axis)
        in_a_graph(peers, axis)
        large_sums(axis)
        large_gathers(axis)
    print("all checks hold", flush=True)


run_and_exit(main)
