"""Tensor parallel: every matrix is cut, and all ranks work on the same rows (torch's DTensor).

Megatron's pairs (arXiv:1909.08053): the first matrix is cut by columns (each rank: some heads,
some of the MLP's channels), the second by rows, so that only its output must be summed. Between
the pairs each rank keeps 1/W of the positions (sequence parallel, arXiv:2205.05198): that sum is
a reduce-scatter, and an all-gather brings the positions back before the next pair.
"""

import torch
from torch import nn
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

from dist_playground.errors import UsageError
from dist_playground.model import GPT, GPTConfig
from dist_playground.strategy import Strategy
from dist_playground.world import World

__all__ = ["TENSOR_PARALLEL"]


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


def parallelise(model: GPT, world: World, compute_dtype: torch.dtype) -> nn.Module:
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
    return model


def check(config: GPTConfig, sequence_length: int, size: int) -> None:
    """Raise UsageError unless heads and positions divide by the number of ranks."""
    heads = config.heads
    if heads % size:
        fits = [n for n in range(1, heads + 1) if heads % n == 0]
        raise UsageError(
            f"the model's {heads} heads are not divisible by the {size} ranks: "
            f"use --nproc-per-node {' or '.join(map(str, fits))}, or another --model"
        )
    if sequence_length % size:
        raise UsageError(
            f"--sequence-length {sequence_length} is not divisible by the {size} ranks: "
            f"use --sequence-length {-(-sequence_length // size) * size}"
        )


TENSOR_PARALLEL = Strategy("tensor_parallel", parallelise, splits_batch=False, check=check)
