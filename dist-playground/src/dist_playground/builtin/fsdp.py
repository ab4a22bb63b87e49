"""torch's fully_shard (FSDP2): every parameter cut along its first dimension, ZeRO stage 3."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from dist_playground.builtin.wrapped import Wrapped
from dist_playground.model import GPT
from dist_playground.world import World

__all__ = ["fsdp"]


def fsdp(model: GPT, world: World, dtype: torch.dtype, reshard: bool = True) -> Wrapped:
    """Shard every parameter over all ranks, one all-gather and one reduce-scatter a block."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    # The shards stay float32; weights travel in the dtype they are used in, gradients are summed
    # in float32. Inputs are not cast: the residual stream stays float32, as in one process.
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return Wrapped(model, world.size)
