"""torch's context parallelism: within its context, attention on a rank's positions is a ring's.

It cuts the batch itself, in the same order as ours: each rank gets one chunk of positions from
the front and one from the back. Gradients are summed by torch's DDP.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel

from dist_playground.errors import UsageError
from dist_playground.settings import Settings
from dist_playground.strategy import MicroBatch, Parallel, Schedule, one_after_another
from dist_playground.world import World

__all__ = ["check", "in_context"]


def in_context(world: World) -> Schedule:
    """A schedule that takes whole rows and cuts their positions over all ranks."""
    mesh = init_device_mesh(world.device.type, (world.size,))

    def schedule(parallel: Parallel, batches: Sequence[MicroBatch], total: int) -> Tensor:
        T = batches[0].tokens.shape[1]
        placed = [replace(b, positions=torch.arange(T, device=world.device)) for b in batches]
        buffers: list[Tensor] = []
        for batch in placed:
            assert batch.positions is not None
            buffers += (batch.tokens, batch.targets, batch.positions)
        with context_parallel(
            mesh,
            buffers=buffers,
            buffer_seq_dims=[1, 1, 0] * len(placed),
            no_restore_buffers=set(buffers),
        ):
            return one_after_another(parallel, placed, total)

    return schedule


def check(settings: Settings, world: World) -> None:
    """Raise UsageError for what torch's context parallelism cannot do."""
    if world.device.type != "cuda":
        raise UsageError(
            "torch's context parallelism has no attention kernel for CPUs: use --impl scratch, "
            "or GPUs"
        )
    # Its float32 kernel rounds a chunk's length up to this, which its ring does not expect.
    chunk = 32 * 2 * world.size
    if settings.dtype == "float32" and settings.sequence_length % chunk:
        fits = -(-settings.sequence_length // chunk) * chunk
        raise UsageError(
            f"--sequence-length {settings.sequence_length} does not divide into 2 chunks of a "
            f"multiple of 32 for each of the {world.size} ranks, which torch's context "
            f"parallelism needs in float32: use --sequence-length {fits}"
        )
