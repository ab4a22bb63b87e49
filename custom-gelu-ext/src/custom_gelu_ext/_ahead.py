"""A library that was compiled into the wheel (setup.py), if it fits the torch and CPU at hand."""

from __future__ import annotations

import importlib
import json
import platform
import types
import warnings
from pathlib import Path

import torch

from custom_gelu_ext._build import BuildInfo

PACKAGE = Path(__file__).resolve().parent
OLDEST_STABLE = (2, 10)


def ahead_of_time() -> BuildInfo | None:
    """Load the wheel's library; None where there is none, or, after a warning, none that fits."""
    try:
        facts = json.loads((PACKAGE / "_built.json").read_text())
        (library,) = PACKAGE.glob(f"_{facts['kind']}*.so")
    except (OSError, ValueError):
        return None
    if reason := _unfit(facts):
        warnings.warn(
            f"custom_gelu_ext: the wheel's {facts['kind']} library is not used: {reason}",
            stacklevel=2,
        )
        return None
    if facts["kind"] == "aot":
        module = importlib.import_module("custom_gelu_ext._aot")
    else:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        module = types.ModuleType("custom_gelu_ext._stable")  # it has no Python part
    return BuildInfo(
        module, bool(facts["architectures"]), facts["architectures"], PACKAGE, facts["missing"]
    )


def _unfit(facts: dict[str, str]) -> str:
    version = torch.__version__.partition("+")[0]
    if facts["kind"] == "aot" and version != facts["torch"]:
        return f"it was compiled for torch {facts['torch']}, and this is {version}"
    if facts["kind"] == "stable" and tuple(map(int, version.split(".")[:2])) < OLDEST_STABLE:
        return f"it needs torch 2.10 or later, and this is {version}"
    x86 = platform.machine() in ("x86_64", "AMD64")
    if x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"):
        return "it needs a CPU with AVX2"
    return ""


def kind() -> str:
    """Say how the loaded library came about: "aot", "stable", or "" for compiled at import."""
    try:
        facts = json.loads((PACKAGE / "_built.json").read_text())
    except (OSError, ValueError):
        return ""
    return "" if _unfit(facts) else str(facts["kind"])
