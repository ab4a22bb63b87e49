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


def kernels(device: torch.device | str | None = None) -> tuple[Kernel, ...]:
    """Return the ladder for a device, lowest rung first.

    Args:
        device: a CPU or CUDA device; by default CUDA's if this build has it and a GPU is there,
            else the CPU's.

    Returns:
        The kernels that this device can run; for CUDA without a GPU, all that were built. Empty
        where this build has none (``build_info.missing`` says why).

    Raises:
        ValueError: there is no ladder for such a device, or no such device.
    """
    gpu = torch.cuda.is_available()
    chosen = torch.device(device or ("cuda" if build_info.cuda and gpu else "cpu"))
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(
            f"no kernels for device type {chosen.type!r}: there are ladders for cpu and cuda"
        )
    if build_info.module is None:
        return ()
    if chosen.type == "cpu":
        return tuple(Kernel(*x) for x in build_info.module.cpu_kernels())
    if not gpu:
        return tuple(Kernel(*x) for x in build_info.module.cuda_kernels(-1))
    index = torch.cuda.current_device() if chosen.index is None else chosen.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"there is no {chosen}: torch sees {torch.cuda.device_count()} CUDA GPUs")
    return tuple(Kernel(*x) for x in build_info.module.cuda_kernels(index))


def ffma_ceiling(device: torch.device | str = "cuda") -> float:
    """Measure the most FP32 TFLOP/s that an idle GPU's arithmetic reaches; takes 0.2 seconds.

    Fused multiply-adds on values that never leave registers (``csrc/cuda/ceiling.cu``), so no
    matrix product in FP32 can be faster.

    Raises:
        RuntimeError: this build has no CUDA kernels, or CUDA reports an error.
    """
    if build_info.module is None or not build_info.cuda:
        raise RuntimeError(f"no CUDA kernels were built: {build_info.missing}")
    index = torch.device(device).index
    chosen = torch.cuda.current_device() if index is None else index
    return float(build_info.module.ffma_ceiling(chosen))
