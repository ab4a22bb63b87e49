"""python -m custom_gelu_ext.doctor: what is built, for which devices, and what is missing.

Ends with status 0 if our kernels serve every device of this machine, else 1.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import warnings

import torch

from custom_gelu_ext import _ahead, _build


def main() -> int:
    """Print the findings; return the exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is printed below
        import custom_gelu_ext
    info = custom_gelu_ext.build_info
    line("package", f"custom_gelu_ext {custom_gelu_ext.__version__}, {_build.PACKAGE}")
    line("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    line("Python", f"{platform.python_version()}, {platform.machine()}")
    line("C++ compiler", _build.cpu_missing() or " ".join(_build.cxx()))
    line("nvcc", str(_build.cuda_home() or "not found"))
    line("ninja", _version_of("ninja"))
    how = {
        "": "compiled at first import",
        "aot": "ahead of time, in the wheel",
        "stable": "in the wheel, for torch 2.10 and later",
    }[_ahead.kind()]
    line("library", f"{how}: {info.directory}" if info.module else "none: torch's own kernels run")
    healthy = verdict("CPU", torch.device("cpu"), info.module is not None, info.missing)
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        major, minor = torch.cuda.get_device_capability(index)
        built = info.cuda and _build.covers(info.architectures, (major, minor))
        why = info.missing or f"built for {info.architectures}, this is {major}.{minor}"
        healthy &= verdict(f"GPU {index}", torch.device("cuda", index), built, why, name)
    if torch.cuda.device_count() == 0:
        line("GPU", f"none visible; CUDA kernels: {info.architectures or info.missing}")
    return 0 if healthy else 1


def line(name: str, text: str) -> None:
    """Print one finding."""
    print(f"{name:13} {text}")


def verdict(name: str, device: torch.device, built: bool, missing: str, label: str = "") -> bool:
    """Run gelu once on a device that has kernels, and print how that went."""
    label = f"{label}: " if label else ""
    if not built:
        line(name, f"{label}torch's own GELU runs: {missing}")
        return False
    x = torch.tensor([-8.0, 2.0], device=device)
    try:
        y = torch.ops.custom_gelu_ext.gelu(x).cpu()
    except RuntimeError as error:
        line(name, f"{label}FAILED: {str(error).splitlines()[0]}")
        return False
    right = abs(float(y[0]) / -4.976769e-15 - 1) < 1e-5 and abs(float(y[1]) - 1.9544997) < 1e-6
    line(name, f"{label}our kernels run" if right else f"{label}WRONG RESULT: {y.tolist()}")
    return right


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not found (pip install ninja)"


if __name__ == "__main__":
    sys.exit(main())
