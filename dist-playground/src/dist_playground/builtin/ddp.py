"""torch's DistributedDataParallel, with its buckets as the gradients' memory."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_playground.builtin.wrapped import Wrapped
from dist_playground.model import GPT
from dist_playground.world import World

__all__ = ["ddp"]


def ddp(model: GPT, world: World, bucket_mib: float = 100.0) -> Wrapped:
    """Every rank has the whole model; gradients are averaged as they come."""
    module: nn.Module = DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        bucket_cap_mb=int(bucket_mib),
        gradient_as_bucket_view=True,
    )
    return Wrapped(module, world.size)
