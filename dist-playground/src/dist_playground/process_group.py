"""Join the other processes: one process group over NCCL (GPUs) or gloo (CPUs), left cleanly."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from dist_playground.errors import UsageError
from dist_playground.world import World

__all__ = ["in_rank_order", "process_group"]


@contextmanager
def process_group(world: World, timeout_s: float) -> Iterator[None]:
    """Hold the default process group for the duration of the block.

    `timeout_s` bounds the meeting of the ranks and, on gloo, every collective after it; on NCCL
    the watchdog ends a process whose collective is later than that.
    Raises UsageError when the ranks cannot meet.
    """
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    # Naming the device lets NCCL connect now, where an error is still near its cause.
    device_id = world.device if world.device.type == "cuda" else None
    timeout = timedelta(seconds=timeout_s)
    if world.launched:
        try:
            dist.init_process_group(world.backend, timeout=timeout, device_id=device_id)
        except (dist.DistError, RuntimeError) as error:
            raise UsageError(_meeting_failed(world, timeout_s, error)) from error
    else:
        # Alone: a store in this process's memory, so no port is opened at all.
        dist.init_process_group(
            world.backend,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
            timeout=timeout,
            device_id=device_id,
        )
    yield
    # DDP's reducer refers to the group. Were that the last reference to go, the group's destructor
    # would wait, holding the GIL, for gloo threads that may need the GIL to free a tensor: seen as
    # a run that never ended. So what the block left behind goes first, reference cycles included.
    gc.collect()
    # Not in a `finally`: after an error the other ranks may be gone, and saying goodbye to them
    # would wait for the timeout. The process ends, and torchrun ends the others.
    dist.destroy_process_group()


def _meeting_failed(world: World, timeout_s: float, error: Exception) -> str:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        return (
            f"port {os.environ['MASTER_PORT']} is in use by another run: "
            "use torchrun --standalone (picks a free port) or --master-port with another number"
        )
    return (
        f"{world} could not meet the others at {address} within {timeout_s:.0f} s ({reason}): "
        "are all ranks started, with the same MASTER_ADDR and MASTER_PORT?"
    )


def in_rank_order(world: World) -> Iterator[None]:
    """Loop body runs once in each process, rank 0 first: for output that is readable.

    All ranks must call it together: there is a barrier after each turn.
    """
    for turn in range(world.size):
        if turn == world.rank:
            yield
        if world.size > 1:
            dist.barrier()
