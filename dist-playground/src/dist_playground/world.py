"""Who am I among the processes, and on which device: read from the variables that torchrun sets.

Nothing here talks to another process, so a wrong world is refused before anything can wait.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dist_playground.errors import UsageError

__all__ = ["World", "read_world"]

TORCHRUN_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@dataclass(frozen=True)
class World:
    """One process's place: `rank` of `size` in all, `local_rank` on this host, one device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    launched: bool  # True: torchrun's variables are set. False: plain `python`, alone.

    @property
    def backend(self) -> str:
        """NCCL moves CUDA tensors between GPUs, gloo CPU tensors over TCP."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}"


def read_world(device: str = "auto", environment: Mapping[str, str] = os.environ) -> World:
    """Read this process's place from torchrun's variables; without any of them it is alone.

    `device` is "auto" (CUDA when there is a GPU), "cpu" or "cuda".
    Raises UsageError when only some of the variables are set, or for more ranks than GPUs.
    """
    present = [name for name in TORCHRUN_VARIABLES if name in environment]
    # MASTER_ADDR and MASTER_PORT alone are what clusters export for everyone: not a launch.
    launched = any(not name.startswith("MASTER") for name in present)
    missing = [name for name in TORCHRUN_VARIABLES if name not in environment]
    if launched and missing:
        raise UsageError(
            f"{', '.join(present)} set but {', '.join(missing)} not: "
            "start with torchrun, which sets all six"
        )
    if not launched:
        return World(0, 1, 0, _device(device, local_rank=0, local_size=1), launched=False)
    number = {name: _integer(name, environment[name]) for name in TORCHRUN_VARIABLES[:4]}
    return World(
        rank=number["RANK"],
        size=number["WORLD_SIZE"],
        local_rank=number["LOCAL_RANK"],
        device=_device(device, number["LOCAL_RANK"], number["LOCAL_WORLD_SIZE"]),
        launched=True,
    )


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"{name}={value!r} is no whole number: start with torchrun") from None


def _device(wanted: str, local_rank: int, local_size: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise UsageError("--device cuda, but torch sees no GPU: use --device cpu")
    if not dist.is_nccl_available():
        raise UsageError("this torch has a GPU but was built without NCCL: use --device cpu")
    if local_size > gpus:
        # NCCL refuses two ranks on one GPU, after a long wait and with an unclear message.
        raise UsageError(
            f"{local_size} ranks on this host but {gpus} GPU{'s' * (gpus > 1)}, and NCCL needs "
            f"one a rank: use --nproc-per-node {gpus}, or --device cpu to run on gloo"
        )
    return torch.device("cuda", local_rank)
