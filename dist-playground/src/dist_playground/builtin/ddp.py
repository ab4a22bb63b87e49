"""torch's DistributedDataParallel, with its buckets as the gradients' memory."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_playground.builtin.wrapped import Wrapped
from dist_playground.model import GPT
from dist_playground.world import World

__all__ = ["ddp"]


def ddp(model: GPT, world: World, bucket_mib: float = 100.0) -> Wrapped:
    """Every rank has the whole model; gradients are averaged as they come."""
    gpu = world.device.type == "cuda"
    # On a stream of its own, as what DDP asks autograd for remembers the stream: a CUDA graph of
    # the step could not be captured if it were the default one.
    with torch.cuda.stream(torch.cuda.Stream()) if gpu else nullcontext():  # type: ignore[no-untyped-call]
        module: nn.Module = DistributedDataParallel(
            model,
            device_ids=[world.device] if gpu else None,
            bucket_cap_mb=int(bucket_mib),
            gradient_as_bucket_view=True,
        )
    return Wrapped(module, world.size)
