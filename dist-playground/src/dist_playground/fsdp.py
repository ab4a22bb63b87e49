"""Fully sharded data parallel: each rank keeps 1/W of every weight (torch's FSDP2, ZeRO-3).

Before a block runs its weights are gathered from all ranks, afterwards they are dropped again;
its gradients are averaged and scattered so that each rank keeps, and steps, only its own part.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from dist_playground.model import GPT
from dist_playground.strategy import Strategy
from dist_playground.world import World

__all__ = ["FSDP"]


def parallelise(model: GPT, world: World, compute_dtype: torch.dtype) -> nn.Module:
    """Shard every parameter over all ranks, one all-gather and one reduce-scatter a block."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    # The shards stay float32; weights travel in the dtype they are used in, gradients are summed
    # in float32. Inputs are not cast: the residual stream stays float32, as in one process.
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


FSDP = Strategy("fsdp", parallelise, splits_batch=True)
