"""The training loop, the same for every kind of parallelism: only `parallelise` differs."""

import math
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from dist_playground.data import Batches
from dist_playground.errors import UsageError
from dist_playground.metrics import StepTimer, local, peak_memory, state_bytes
from dist_playground.model import GPT, MODELS
from dist_playground.report import Report
from dist_playground.settings import Settings
from dist_playground.strategy import Strategy
from dist_playground.world import World

__all__ = ["Result", "build_model", "build_optimizer", "train"]

MAX_GRADIENT_NORM = 1.0


@dataclass
class Result:
    """What a run gave; losses are of the global batch, the rest is this rank's."""

    parameters: int  # of the whole model
    held: int  # numbers of them that lie on this rank
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)  # of the whole gradient, unclipped
    step_seconds: list[float] = field(default_factory=list)
    state_bytes: int = 0
    peak_bytes: int = 0


def build_model(settings: Settings, device: torch.device) -> GPT:
    """The same weights on every rank and any device: drawn on the CPU from the seed alone."""
    torch.manual_seed(settings.seed)
    return GPT(MODELS[settings.model]).to(device)


def build_optimizer(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW in one fused kernel; it steps whatever part of the weights this rank holds."""
    return torch.optim.AdamW(
        module.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        fused=True,
    )


def train(
    world: World,
    settings: Settings,
    strategy: Strategy,
    batches: Batches,
    rows: slice,
    report: Report,
) -> tuple[nn.Module, Result]:
    """Train from scratch; every rank of the process group calls it with the same settings.

    `rows` of each global batch are this rank's. Raises UsageError when the loss is not finite.
    """
    compute_dtype = getattr(torch, settings.dtype)
    model = build_model(settings, world.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    module = strategy.parallelise(model, world, compute_dtype)
    optimizer = build_optimizer(module, settings)
    held = sum(local(parameter).numel() for parameter in module.parameters())
    result = Result(parameters, held)
    report.start(result, rows)

    timer = StepTimer(world.device)
    unread: list[Tensor] = []  # [loss, gradient norm] of the steps since the last line
    timer.mark()
    for step in range(settings.steps):
        inputs_BT, targets_BT = (t.to(world.device) for t in batches.draw(step, rows))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            world.device.type, dtype=torch.bfloat16, enabled=compute_dtype == torch.bfloat16
        ):
            loss = module(inputs_BT, targets_BT)
        loss.backward()
        # foreach=False: with torch's batched clipping, tensor parallel left the single process's
        # losses on CUDA in torch 2.11; with this it does not (LOG.md).
        norm = nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT_NORM, foreach=False)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        optimizer.step()
        unread.append(torch.stack((loss.detach(), norm)))
        timer.mark()

        if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
            # The only place that waits for the device: reading a loss stops the CPU, which
            # otherwise queues the next step while this one runs.
            by_rank = _gather(torch.stack(unread), world)
            unread.clear()
            result.losses += by_rank[:, :, 0].mean(0).tolist()
            result.gradient_norms += by_rank[:, :, 1].mean(0).tolist()
            result.step_seconds += timer.seconds(start=len(result.step_seconds))
            result.peak_bytes = peak_memory(world.device)
            _refuse_non_finite(result, step, settings)
            report.line(step, result, by_rank[:, -1, 0].tolist())
    result.state_bytes = state_bytes(module, optimizer)
    return module, result


def _gather(values: Tensor, world: World) -> Tensor:
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


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """The whole model's weights on rank 0's CPU, named as in GPT; all ranks must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(module, options=options)
    return {name: value for name, value in weights.items() if isinstance(value, Tensor)}
