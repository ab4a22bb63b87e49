"""One way to train, measured: build it, time its steps, read its memory, profile a step."""

import gc
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dist_playground.data import Batches, read_standard_library
from dist_playground.metrics import StepTimer, peak_memory, state_bytes
from dist_playground.model import MODELS, GPTConfig
from dist_playground.plan import build, check
from dist_playground.settings import Settings
from dist_playground.trace import record
from dist_playground.train import Trainer, build_model, gather
from dist_playground.world import World

__all__ = ["Trial", "flops_a_token", "run_trial"]


@dataclass(frozen=True)
class Trial:
    """What to train and how long; losses are kept of the first `warm_up` steps too."""

    name: str
    kind: str
    settings: Settings
    warm_up: int
    timed: int
    alone: bool = False  # every rank trains a model of its own on the whole batch


def flops_a_token(config: GPTConfig, T: int) -> float:
    """Floating-point operations of forward and backward, as MFU counts them.

    Two for each multiply-add, three products a matrix (Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B), causal attention counted at half of T; the embedding's lookup is none.
    """
    matrices = 12 * config.layers * config.width**2 + config.vocabulary_size * config.width
    return 6.0 * matrices + 6.0 * config.layers * config.width * T


def run_trial(world: World, trial: Trial) -> dict[str, Any]:
    """Losses of all steps, seconds of the timed ones, peak bytes, and the profile of one more.

    Collective: all ranks of the process group must call it with the same trial.
    """
    settings = trial.settings
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(world.device)
    before = torch.cuda.memory_allocated(world.device) if world.device.type == "cuda" else 0
    place = replace(world, rank=0, size=1) if trial.alone else world
    sizes = check(trial.kind, settings, place)
    plan = build(trial.kind, settings, place, sizes, build_model(settings, world.device))
    copies = world.size if trial.alone else plan.copies
    text = read_standard_library(most=settings.text_bytes)
    batches = Batches(text, settings.batch_size, settings.sequence_length, settings.seed)
    trainer = Trainer(world, settings, plan, batches)
    shares, tokens = [], 0
    timer = StepTimer(world.device)
    for step in range(trial.warm_up + trial.timed):
        if step == trial.warm_up:
            timer.mark()
        share, _, tokens = trainer.step(step)
        shares.append(share)
        # What building took, and a compiler's trials, must not hide what training takes.
        if step == 0 and world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)
        if step >= trial.warm_up:
            timer.mark()
    by_rank = gather(torch.stack(shares), world)
    seconds = gather(torch.tensor(timer.seconds(), device=world.device), world)
    peak = torch.tensor(float(peak_memory(world.device) - before), device=world.device)
    number = trial.warm_up + trial.timed
    state = state_bytes(plan.parallel.parameters(), trainer.optimizer)
    held = torch.tensor(float(state), device=world.device)
    timeline = record(lambda: trainer.step(number), world.device)
    return {
        "name": trial.name,
        "losses": (by_rank.sum(0) / copies).tolist(),
        "tokens": tokens * (world.size if trial.alone else 1),  # of all ranks together
        "seconds": seconds.mean(0).tolist(),  # the ranks wait for each other, or are alike
        "peak_bytes": gather(peak, world).max().item(),
        "state_bytes": gather(held, world).max().item(),
        "timeline": asdict(timeline),
        "exposed_ms": timeline.exposed,
        "flops_a_token": flops_a_token(MODELS[settings.model], settings.sequence_length),
    }
