"""What a kind of parallelism has to say for the training loop to use it: three things."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dist_playground.model import GPT, GPTConfig
from dist_playground.world import World

__all__ = ["Strategy"]


@dataclass(frozen=True)
class Strategy:
    """One kind of parallelism.

    `parallelise(model, world, compute_dtype)` takes the whole model, equal on every rank and
    already on the rank's device, and gives back the module to train; its forward is the model's.
    """

    name: str
    parallelise: Callable[[GPT, World, torch.dtype], nn.Module]
    splits_batch: bool  # True: each rank trains on its rows. False: every rank sees the batch.
    synchronises: bool = True  # False: the ranks train models of their own and never talk
    # Raises UsageError when (model, sequence length) do not divide by the number of ranks.
    check: Callable[[GPTConfig, int, int], None] = lambda config, sequence_length, size: None
