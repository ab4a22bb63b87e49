"""torchrun --nproc-per-node N checks.py: what only several processes together can check."""

import gc
import io
import weakref
from contextlib import redirect_stdout

import torch
import torch.distributed as dist
from dist_playground.collectives import (
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    tree_all_reduce,
)
from dist_playground.ending import run_and_exit
from dist_playground.grid import Axis, Grid
from dist_playground.mapped import _kept, mapped_bytes, reachable
from dist_playground.model import GPT, MODELS, Linear
from dist_playground.plan import build, check
from dist_playground.process_group import process_group
from dist_playground.scratch.ddp import DDP, placements_of
from dist_playground.settings import parse_settings
from dist_playground.train import build_model
from dist_playground.world import read_world
from torch import Tensor, nn


def collectives(axis: Axis) -> None:
    """Sums of integers are exact whatever the order, so they must be equal to the last bit."""
    for numel in (0, 1, 2, 3, 5, 7, 64, 1001):
        generator = torch.Generator().manual_seed(numel)
        every = [
            torch.randint(-1000, 1000, (numel,), generator=generator) for _ in range(axis.size)
        ]
        mine, total = every[axis.index], sum(every)
        for way in (ring_all_reduce, tree_all_reduce):
            x = mine.clone()
            way(x, axis)
            assert torch.equal(x, total), (way.__name__, numel)
        length = -(-numel // axis.size)
        part = total[axis.index * length : (axis.index + 1) * length]
        assert torch.equal(ring_reduce_scatter(mine.clone(), axis), part), numel
        x = torch.full((numel,), -1)
        x[axis.index * length : (axis.index + 1) * length] = part
        ring_all_gather(x, axis)
        assert torch.equal(x, total), numel
    for value in (float("nan"), float("inf")):
        for way in (ring_all_reduce, tree_all_reduce):
            x = torch.zeros(5)
            if axis.index == axis.size - 1:
                x[3] = value
            way(x, axis)
            assert torch.equal(x.isfinite(), torch.tensor([True, True, True, False, True]))


class Odd(nn.Module):
    """One matrix used twice, one on rank 0 only, one never, one that is given a zero input."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.sometimes, self.never = Linear(4, 4), Linear(4, 4), Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, other: bool) -> Tensor:
        x = self.twice(self.twice(x)) * self.scale
        return (self.sometimes(x) if other else x).square().sum()


def unused_parameters(axis: Axis) -> None:
    """Gradients of parameters that a rank, or every rank, did not use."""
    inputs = [
        torch.randn(3, 4, generator=torch.Generator().manual_seed(r)) for r in range(axis.size)
    ]
    torch.manual_seed(0)
    whole = Odd()
    for rank, x in enumerate(inputs):
        whole(x, rank == 0).backward()
    for find_unused in (False, True):
        torch.manual_seed(0)
        model = Odd()
        ours = DDP(model, axis, placements_of(model), bucket_mib=1e-5, find_unused=find_unused)
        assert len(ours.buckets) > 2
        for _ in range(2):  # the second step must not know of the first
            ours.before_step()
            model(inputs[axis.index], axis.index == 0).backward()
            ours.after_backward()
            ours.finish()
            for (name, p), q in zip(whole.named_parameters(), model.parameters(), strict=True):
                if name == "never.weight":
                    assert q.grad is None if find_unused else not q.grad.any()
                else:
                    torch.testing.assert_close(q.grad, p.grad, msg=name)


def memory_is_freed(world) -> None:
    """Nothing that C++ holds may keep a model alive: a second one would not fit beside it."""
    for kind, options in (
        ("ddp", []),
        ("ddp", ["--zero1"]),
        ("fsdp", []),
        ("tensor_parallel", []),
        ("ddp", ["--impl", "torch"]),
    ):
        settings = parse_settings("", ["--model", "micro", "--sequence-length", "60", *options])
        sizes = check(kind, settings, world)
        model = build_model(settings, world.device)
        alive = weakref.ref(model)
        plan = build(kind, settings, world, sizes, model)
        tokens = torch.zeros(2, 60, dtype=torch.int64)
        plan.parallel.before_step()
        plan.parallel.module(tokens, tokens).backward()
        plan.parallel.after_backward()
        plan.parallel.finish()
        del model, plan
        gc.collect()
        assert alive() is None, (kind, options)


def no_mapped_memory(axis: Axis) -> None:
    """A mapping that fails is found out by all ranks together, and said."""
    assert not reachable(axis, torch.device("cpu"))
    text = io.StringIO()
    with redirect_stdout(text):
        assert not _kept(axis, torch.device("cpu"))
    assert "so NCCL moves all data" in text.getvalue()
    assert mapped_bytes() == 0


def the_same_on_every_rank(axis: Axis) -> None:
    """Drawn from the seed: all ranks begin with the same bits."""
    torch.manual_seed(1)
    mine = torch.cat([p.detach().flatten() for p in GPT(MODELS["micro"]).parameters()])
    every = [torch.empty_like(mine) for _ in range(axis.size)]
    dist.all_gather(every, mine)
    assert all(torch.equal(one, mine) for one in every)


def main() -> None:
    world = read_world("cpu")
    torch.set_num_threads(1)
    with process_group(world, timeout_s=30):
        axis = Grid({"data": world.size}, world.rank).data
        collectives(axis)
        unused_parameters(axis)
        the_same_on_every_rank(axis)
        no_mapped_memory(axis)
        if MODELS["micro"].heads % world.size == 0:
            memory_is_freed(world)
    print("all checks hold")


run_and_exit(main)
