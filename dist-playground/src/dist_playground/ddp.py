"""Data parallel: a full model on every rank, its own rows, gradients averaged (torch's DDP).

Each rank's backward gives the gradient of the mean loss over its rows. As all have equally many
rows, the average of those is the gradient over the global batch, so every rank takes the step
that one process would. DDP all-reduces in buckets while the backward still runs.
"""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_playground.model import GPT
from dist_playground.strategy import Strategy
from dist_playground.world import World

__all__ = ["DDP"]


def parallelise(model: GPT, world: World, compute_dtype: torch.dtype) -> nn.Module:
    """Wrap the model so that backward averages the gradients over all ranks."""
    # Gradients live inside the buckets: no copy out of them, and one model's worth less memory.
    return DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


DDP = Strategy("ddp", parallelise, splits_batch=True)
