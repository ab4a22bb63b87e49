"""torch's tensor parallelism: parameters become DTensors, a plan says how each module is cut.

The same cuts as scratch/tensor_parallel.py, but every operation goes through DTensor, which finds
out what to exchange; the logits of the whole vocabulary are gathered on every rank.
"""

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from dist_playground.builtin.wrapped import Wrapped
from dist_playground.model import GPT
from dist_playground.world import World

__all__ = ["tensor_parallel"]


def block_plan() -> dict[str, ParallelStyle]:
    """How one block's modules are cut; activations outside attention and MLP are Shard(1): T."""
    return {
        "attention_norm": SequenceParallel(),
        # The rotation (second input) is the same on all ranks and needs no layout.
        "attention": PrepareModuleInput(
            input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None)
        ),
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.output": RowwiseParallel(output_layouts=Shard(1)),
        "mlp_norm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "mlp.up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
    }


def tensor_parallel(model: GPT, world: World) -> Wrapped:
    """Cut every parameter over all ranks; rank 0's values are the ones that are cut."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in model.blocks:
        parallelize_module(block, mesh, block_plan())
    # The embedding is cut by its rows (bytes), the head by its columns (logits of some bytes);
    # each rank then gathers all logits, and so all ranks compute the same loss.
    plan: dict[str, ParallelStyle] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)
    return Wrapped(model, 1, foreach=False)
