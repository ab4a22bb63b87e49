"""Load the compiled extension and list what its ladders hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cuda_matmul_f32 import _build

build_info = _build.build()


@dataclass(frozen=True)
class Kernel:
    """One rung of a ladder; the source is ``csrc/<device>/<number>_<name>``."""

    number: int
    name: str  # what ``matmul(..., kernel=name)`` takes
    summary: str  # one line: the bottleneck that it removes


def _ladders() -> dict[str, tuple[Kernel, ...]]:
    if build_info.module is None:
        return {"cpu": (), "cuda": ()}
    return {
        "cpu": tuple(Kernel(*x) for x in build_info.module.cpu_kernels()),
        "cuda": tuple(Kernel(*x) for x in build_info.module.cuda_kernels()),
    }


LADDERS = _ladders()
# The same as plain strings, which torch.compile can look into while it traces matmul().
NAMES = {device: tuple(kernel.name for kernel in ladder) for device, ladder in LADDERS.items()}


def kernels(device: torch.device | str | None = None) -> tuple[Kernel, ...]:
    """Return the ladder for a device's type, lowest rung first.

    Args:
        device: a CPU or CUDA device; by default CUDA's if this build has it and a GPU is there,
            else the CPU's.

    Returns:
        The kernels; empty where this build has none (``build_info.missing`` says why).

    Raises:
        ValueError: there is no ladder for such a device.
    """
    if device is None:
        device = "cuda" if build_info.cuda and torch.cuda.is_available() else "cpu"
    kind = torch.device(device).type
    if kind not in LADDERS:
        raise ValueError(f"no kernels for device type {kind!r}: there are ladders for cpu and cuda")
    return LADDERS[kind]
