"""The training loop, the same for every kind of parallelism: only the plan differs."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_playground import checkpoint
from dist_playground.data import Batches, share_of
from dist_playground.errors import UsageError
from dist_playground.graph import GraphedStep
from dist_playground.grid import Grid
from dist_playground.metrics import StepTimer, local, peak_memory, state_bytes
from dist_playground.model import GPT, MODELS
from dist_playground.plan import Plan
from dist_playground.report import Report
from dist_playground.scratch.ring_attention import positions
from dist_playground.settings import Settings
from dist_playground.strategy import MicroBatch
from dist_playground.world import World

__all__ = ["Result", "Trainer", "build_model", "gather", "train"]

MAX_GRADIENT_NORM = 1.0
# Steps before one is captured: torch's DDP measures and rebuilds its buckets in the first ten.
WARM_UP = {"scratch": 3, "torch": 11}


@dataclass
class Result:
    """What a run gave; losses are of the global batch, the rest is this rank's."""

    parameters: int  # of the whole model
    held: int  # numbers of them that lie on this rank and are stepped by it
    first_step: int = 0  # above 0: resumed; losses are of all steps, seconds of these ones
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)  # of the whole gradient, unclipped
    step_seconds: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)  # of the global batch
    state_bytes: int = 0
    peak_bytes: int = 0


def build_model(settings: Settings, device: torch.device) -> GPT:
    """The same weights on every rank: drawn on the device from the seed alone."""
    torch.manual_seed(settings.seed)
    with device:
        model = GPT(MODELS[settings.model], getattr(torch, settings.dtype))
    for name, parameter in model.named_parameters():
        if settings.freeze and name.startswith(settings.freeze):
            parameter.requires_grad_(False)
    return model


def build_optimizer(parameters: list[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """AdamW in one fused kernel; it steps whatever part of the weights this rank holds."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        fused=True,
        capturable=settings.graph,
    )


def micro_batches(
    tokens_BT: Tensor, targets_BT: Tensor, count: int, grid: Grid, device: torch.device
) -> list[MicroBatch]:
    """Cut a global batch into `count` micro-batches; this rank's rows and positions of each."""
    found = []
    for number in range(count):
        rows = share_of(len(tokens_BT), number, count)
        if rows.start == rows.stop:  # the last batch of an epoch may have fewer rows than that
            continue
        mine = share_of(rows.stop - rows.start, grid.data.index, grid.data.size)
        tokens = _to(tokens_BT[rows][mine], device)
        targets = _to(targets_BT[rows][mine], device)
        place_T = None
        if grid.context.size > 1:
            place_T = positions(tokens.shape[1], grid.context, device)
            tokens, targets = tokens[:, place_T], targets[:, place_T]
        found.append(MicroBatch(tokens, targets, place_T))
    return found


def _to(x: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; from pinned memory, so that the CPU does not wait for a busy GPU."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


class Trainer:
    """A plan and its optimizer; `step` is all that happens between two batches."""

    def __init__(self, world: World, settings: Settings, plan: Plan, batches: Batches) -> None:
        self.world, self.settings, self.plan, self.batches = world, settings, plan, batches
        self.optimizer = build_optimizer(plan.parallel.parameters(), settings)
        self._compute = self.compute
        if settings.graph:
            self._compute = GraphedStep(self.compute, WARM_UP[settings.impl])

    def step(self, number: int) -> tuple[Tensor, Tensor, int]:
        """Train on batch `number`: this rank's share of the loss, the norm, tokens of all ranks.

        Nothing here waits for the device, so that the CPU can queue the next step meanwhile.
        """
        tokens, targets = self.batches.draw(number)
        mine = micro_batches(
            tokens, targets, self.settings.accumulate, self.plan.grid, self.world.device
        )
        share, norm = self._compute(mine, targets.numel())
        return share, norm, targets.numel()

    def compute(self, batches: Sequence[MicroBatch], total: int) -> tuple[Tensor, Tensor]:
        """Forward, backward and the optimizer: the loss share and the norm, on the device."""
        parallel = self.plan.parallel
        parallel.before_step()
        share = self.plan.schedule(parallel, batches, total)
        norm = parallel.clip(MAX_GRADIENT_NORM, self.optimizer)
        self.optimizer.step()
        parallel.stepped()
        return share, norm


def train(
    world: World, settings: Settings, plan: Plan, batches: Batches, parameters: int, report: Report
) -> Result:
    """Train; every rank of the process group calls it with the same settings.

    Raises UsageError when the loss is not finite.
    """
    trainer = Trainer(world, settings, plan, batches)
    begin, progress = _resume(settings, trainer, batches)
    held = sum(local(p).numel() for p in plan.parallel.parameters())
    result = Result(parameters, held, begin, *progress)
    report.start(result)

    timer = StepTimer(world.device)
    unread: list[Tensor] = []  # [loss share, gradient norm] of the steps since the last line
    timer.mark()
    for step in range(begin, settings.steps):
        share, norm, tokens = trainer.step(step)
        unread.append(torch.stack((share, norm)))
        result.step_tokens.append(tokens)
        timer.mark()

        last = step + 1 == settings.steps
        saving = settings.checkpoint and (last or (step + 1) % settings.checkpoint_every == 0)
        if saving or last or (step + 1) % settings.log_every == 0:
            # The only place that waits for the device: reading a loss stops the CPU, which
            # otherwise queues the next step while this one runs.
            by_rank = gather(torch.stack(unread), world)
            unread.clear()
            result.losses += (by_rank[:, :, 0].sum(0) / plan.copies).tolist()
            result.gradient_norms += by_rank[:, :, 1].mean(0).tolist()
            result.step_seconds += timer.seconds()
            result.peak_bytes = peak_memory(world.device)
            _refuse_non_finite(result, step, settings)
            report.line(step, result)
        if saving:
            assert settings.checkpoint is not None
            kept = {"losses": result.losses, "gradient_norms": result.gradient_norms}
            kept |= _what_must_be_the_same(settings, batches)
            checkpoint.save(settings.checkpoint, step + 1, plan.parallel, trainer.optimizer, kept)
            timer.restart()
    result.state_bytes = state_bytes(plan.parallel.parameters(), trainer.optimizer)
    return result


def _what_must_be_the_same(settings: Settings, batches: Batches) -> dict[str, Any]:
    """Without these a resumed run would not go on as the first one would have."""
    names = ("model", "batch_size", "accumulate", "sequence_length", "learning_rate", "seed")
    found = {name: getattr(settings, name) for name in (*names, "freeze")}
    return {"settings": found, "text": batches.text.checksum}


def _resume(
    settings: Settings, trainer: Trainer, batches: Batches
) -> tuple[int, tuple[list[float], list[float]]]:
    """Read the newest checkpoint, if there is one: steps done, and their losses and norms."""
    found = checkpoint.newest(settings.checkpoint) if settings.checkpoint else None
    if found is None:
        return 0, ([], [])
    path, progress = found
    mine = json.loads(json.dumps(_what_must_be_the_same(settings, batches)))
    for name, value in (mine["settings"] | {"text": mine["text"]}).items():
        theirs = (progress["settings"] | {"text": progress["text"]})[name]
        if theirs != value:
            raise UsageError(
                f"{path} is of a run with {name} {theirs!r}, and this one has {value!r}: "
                "use the same, or another --checkpoint folder"
            )
    if progress["step"] >= settings.steps:
        raise UsageError(f"{path} has {progress['step']} steps already: use --steps above that")
    checkpoint.load(path, trainer.plan.parallel, trainer.optimizer, progress["step"])
    if trainer.world.rank == 0:
        print(f"going on from {path}, after step {progress['step']}", flush=True)
    return progress["step"], (progress["losses"], progress["gradient_norms"])


def gather(values: Tensor, world: World) -> Tensor:
    """Every rank's values, stacked in order of rank, on the CPU."""
    received = [torch.empty_like(values) for _ in range(world.size)]
    dist.all_gather(received, values)
    return torch.stack(received).cpu()


def _refuse_non_finite(result: Result, step: int, settings: Settings) -> None:
    # All ranks see the same gathered losses, so all of them leave here together.
    if not math.isfinite(sum(result.losses)):
        first = next(i for i, loss in enumerate(result.losses) if not math.isfinite(loss))
        raise UsageError(
            f"the loss is {result.losses[first]} at step {first + 1}: "
            f"use a --learning-rate smaller than {settings.learning_rate:g}"
        )
