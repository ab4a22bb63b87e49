"""From the options to a model that is ready to train: which parts go where, in which order.

Scratch composes: the pipeline takes its layers, the tensor axis cuts their matrices, the context
axis cuts attention, and last of all one of DDP, ZeRO-1 and FSDP sums gradients over the ranks
that hold the same weights.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from dist_playground.builtin.context_parallel import check as check_torch_context
from dist_playground.builtin.context_parallel import in_context
from dist_playground.builtin.ddp import ddp as torch_ddp
from dist_playground.builtin.fsdp import fsdp as torch_fsdp
from dist_playground.builtin.pipeline import Pipeline as TorchPipeline
from dist_playground.builtin.pipeline import StageOnly
from dist_playground.builtin.pipeline import check as check_torch_pipeline
from dist_playground.builtin.tensor_parallel import tensor_parallel as torch_tensor_parallel
from dist_playground.errors import UsageError
from dist_playground.grid import Axis, Grid, mesh_sizes
from dist_playground.model import GPT, MODELS, Attention
from dist_playground.scratch.ddp import DDP, placements_of
from dist_playground.scratch.fsdp import FSDP
from dist_playground.scratch.operator import OPTIONS
from dist_playground.scratch.pipeline import Pipeline
from dist_playground.scratch.pipeline import check as check_pipeline
from dist_playground.scratch.ring_attention import check as check_context
from dist_playground.scratch.ring_attention import ring_attention
from dist_playground.scratch.tensor_parallel import check as check_tensor
from dist_playground.scratch.tensor_parallel import cut
from dist_playground.scratch.token_exchange import Exchange, Later
from dist_playground.scratch.zero1 import ZeRO1
from dist_playground.settings import Settings
from dist_playground.stage import Stage
from dist_playground.strategy import Parallel, Schedule, one_after_another
from dist_playground.world import World

__all__ = ["KINDS", "Plan", "build", "check"]

# A script's name, and the axis that takes the ranks which --mesh does not name.
KINDS = {
    "single": "data",
    "ddp": "data",
    "fsdp": "data",
    "tensor_parallel": "tensor",
    "pipeline": "pipeline",
    "context_parallel": "context",
}
CAPTURED = ("ddp", "fsdp", "tensor_parallel")  # torch's own that --graph can capture


@dataclass(frozen=True)
class Plan:
    """A model ready to train on this rank, and which share of the batch it trains on."""

    parallel: Parallel
    schedule: Schedule
    grid: Grid
    copies: int  # how many ranks report the same share of the loss


def check(kind: str, settings: Settings, world: World) -> dict[str, int]:
    """The sizes of the axes; raises UsageError for what cannot be, before any rank waits."""
    sizes = mesh_sizes(settings.mesh, world.size, KINDS[kind])
    config = MODELS[settings.model]
    check_tensor(config, settings.sequence_length, sizes["tensor"])
    check_context(settings.sequence_length, sizes["context"])
    check_pipeline(config, sizes["pipeline"])
    if sizes["pipeline"] > 1 and (sizes["tensor"] > 1 or kind == "fsdp" or settings.zero1):
        raise UsageError(
            "the pipeline goes together with the axes data and context and with DDP: leave out "
            "the axis tensor, fsdp.py and --zero1"
        )
    if settings.graph and world.device.type != "cuda":
        raise UsageError("--graph is for CUDA: leave it out, or use --device cuda")
    if settings.impl == "torch":
        _check_builtin(kind, settings, world, sizes)
    return sizes


def _check_builtin(kind: str, settings: Settings, world: World, sizes: dict[str, int]) -> None:
    if kind == "single":
        raise UsageError("single.py has nothing parallel in it, so no --impl torch")
    others = [name for name, size in sizes.items() if size > 1 and name != KINDS[kind]]
    if others:
        raise UsageError(f"--impl torch has one axis here, not also {', '.join(others)}")
    if settings.zero1:
        raise UsageError("--impl torch has no --zero1 here: use --impl scratch")
    if kind == "pipeline":
        check_torch_pipeline(settings, world.size, MODELS[settings.model].tied)
    if kind == "context_parallel":
        check_torch_context(settings, world)
    if settings.graph and kind not in CAPTURED:
        raise UsageError(f"{kind}.py --impl torch has no --graph: use --impl scratch")


def build(kind: str, settings: Settings, world: World, sizes: dict[str, int], model: GPT) -> Plan:
    """Make the model parallel; collective, as it makes process groups."""
    dtype = getattr(torch, settings.dtype)
    if settings.impl == "torch":
        return _builtin(kind, settings, world, sizes, model, dtype)
    alone = kind == "single"
    grid = Grid(sizes, world.rank)
    axis = Axis(1, 0, None, (world.rank,)) if alone else grid.replicas
    # Alone, every rank's gradient is its own affair: nobody's norm is to be asked for.
    others = dist.get_world_size() if alone else dist.get_world_size() // world.size
    placements = placements_of(model, holders=others)
    later: Later | None = None
    if grid.tensor.size > 1:
        exchange = Exchange(grid.tensor, world.device)
        later = exchange.later
        placements = cut(model, exchange)
    if grid.context.size > 1:
        for part in model.modules():
            if isinstance(part, Attention):
                part.attend = partial(ring_attention, axis=grid.context)
    _compile(settings, model)
    module: nn.Module = model
    schedule: Schedule = one_after_another
    if grid.pipeline.size > 1:
        tied = model.config.tied
        module = Stage(model, grid.pipeline.index, grid.pipeline.size)
        placements = module.placements(placements, tied)
        ends = grid.first_and_last() if tied else None
        schedule = Pipeline(grid.pipeline, settings.schedule == "1f1b", ends)
    parallel: Parallel
    if kind == "fsdp":
        parallel = FSDP(model, axis, placements, dtype, reshard=settings.reshard, later=later)
    elif settings.zero1:
        parallel = ZeRO1(module, axis, placements, dtype, later=later)
    else:
        parallel = DDP(module, axis, placements, dtype, later=later)
    return Plan(parallel, schedule, grid, grid.tensor.size)


def _compile(settings: Settings, model: GPT) -> None:
    if settings.compile:
        options = OPTIONS if settings.impl == "scratch" else None
        for block in model.blocks:
            # The forward alone: hooks around it gather weights and are no part of the graph.
            block.forward = torch.compile(block.forward, dynamic=False, options=options)


def _builtin(
    kind: str,
    settings: Settings,
    world: World,
    sizes: dict[str, int],
    model: GPT,
    dtype: torch.dtype,
) -> Plan:
    grid = Grid(sizes, world.rank)
    if kind == "tensor_parallel":
        parallel = torch_tensor_parallel(model, world)
        _compile(settings, model)
        return Plan(parallel, one_after_another, grid, world.size)
    _compile(settings, model)
    if kind == "fsdp":
        return Plan(torch_fsdp(model, world, dtype, settings.reshard), one_after_another, grid, 1)
    if kind == "pipeline":
        schedule = TorchPipeline(world, settings.schedule == "1f1b")
        return Plan(StageOnly(model, world), schedule, grid, 1)
    if kind == "context_parallel" and world.size > 1:
        # A grid with nothing in it: torch cuts the positions itself, the loop must not.
        return Plan(torch_ddp(model, world), in_context(world), Grid({}, world.rank), 1)
    return Plan(torch_ddp(model, world), one_after_another, grid, 1)
