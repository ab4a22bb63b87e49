"""What a figure depends on besides the code: the machine, versions, the commit, the command."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._version import __version__

# What a run itself writes: changes there do not make the measured code another one.
PRODUCED = (":(exclude,glob)**/results/*", ":(exclude,glob)**/README.md")


def describe(device: str, busy: float | None) -> dict[str, Any]:
    """Return the machine that `device` ("cuda" or "cpu") belongs to, without host or user names.

    busy: the share of its processors that others used before the run, from `share_in_use`.
    """
    gpu = _gpu() if device == "cuda" else None
    model = _cpu_model()
    return {
        "slug": slug(gpu["name"], gpu["count"]) if gpu else slug(model),
        "device": device,
        "gpu": gpu,
        "cpu": {"model": model, "cores": os.cpu_count() or 1, "threads": _threads()},
        "memory_gib": _memory_gib(),
        "busy": busy,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def share_in_use(watch_s: float = 0.2) -> float | None:
    """Return which share of the processors is in use while this one waits; None where unknown."""
    try:
        idle, total = _ticks()
        time.sleep(watch_s)
        later_idle, later_total = _ticks()
    except (OSError, ValueError):
        return None
    if later_total == total:
        return None
    return round(1 - (later_idle - idle) / (later_total - total), 2)


def _ticks() -> tuple[int, int]:
    """Return the idle ticks of all processors and all their ticks (Linux only)."""
    with Path("/proc/stat").open() as file:
        ticks = [int(each) for each in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def versions() -> dict[str, Any]:
    """Return the versions of what runs, with torch's setting for float32 products."""
    found: dict[str, Any] = {"python": platform.python_version(), "infra_bench": __version__}
    torch = _torch()
    if torch is not None:
        found["torch"] = str(torch.__version__)
        found["cuda"] = torch.version.cuda
        with suppress(RuntimeError):  # torch refuses where its old and new settings were mixed
            found["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    return found


def slug(name: str, count: int = 1) -> str:
    """Return a name fit for a file: `NVIDIA H100 80GB HBM3` -> `h100-80gb-hbm3`."""
    plain = re.sub(
        r"\((R|TM|C)\)|\b(NVIDIA|CPU|Processor|\d+-Core)\b|@.*| with .*", " ", name, flags=re.I
    )
    words = "-".join(re.findall(r"[a-z0-9]+", plain.lower())) or "unknown"
    return f"{count}x-{words}" if count > 1 else words


def commit(directory: Path) -> tuple[str, bool]:
    """Return the short commit that `directory` lies in and whether its tracked code was changed.

    INFRA_BENCH_COMMIT ("abc1234" or "abc1234-dirty") wins: a copy of the tree without its .git
    still knows what it is. Where neither tells, ("unknown", False).
    """
    given = os.environ.get("INFRA_BENCH_COMMIT", "").strip()
    if given:
        return given.removesuffix("-dirty"), given.endswith("-dirty")
    # A folder that lies in a repository without being tracked there is not that repository's code.
    if not _git(directory, "ls-files", "--", "."):
        return "unknown", False
    head = _git(directory, "rev-parse", "--short", "HEAD")
    changes = _git(
        directory, "status", "--porcelain", "--untracked-files=no", "--", ":/", *PRODUCED
    )
    return head or "unknown", bool(changes)


def command() -> str:
    """Return how the run was started, with no absolute path in it."""
    script, *arguments = sys.argv
    kept = [_without_folders(argument) for argument in arguments]
    return " ".join(["python", Path(script).name, *kept])


def _without_folders(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)


def _git(directory: Path, *arguments: str) -> str:
    return _output("git", "-C", str(directory), *arguments)


def _output(*command_line: str) -> str:
    """Return what a program prints, or nothing where it is missing, fails or hangs."""
    if shutil.which(command_line[0]) is None:
        return ""
    try:
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _gpu() -> dict[str, Any] | None:
    torch = _torch()
    if torch is None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
    }
    query = {
        "driver_version": "driver",
        "clocks.sm": "sm_mhz",
        "clocks.max.sm": "sm_max_mhz",
        "clocks.mem": "memory_mhz",
        "clocks.max.mem": "memory_max_mhz",
        "power.limit": "power_limit_w",
    }
    lines = _output(
        "nvidia-smi", f"--query-gpu={','.join(query)}", "--format=csv,noheader,nounits", "--id=0"
    ).splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    if len(values) == len(query):
        found |= dict(zip(query.values(), values, strict=True))
    return found


def _cpu_model() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _torch() -> Any:
    """Return torch, or None without it: also where only subprocesses of a benchmark used it."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return torch


def default_device() -> str:
    """Return "cuda" where there is a GPU that torch can use, else "cpu"."""
    torch = _torch()
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def _threads() -> int:
    torch = _torch()
    return int(torch.get_num_threads()) if torch is not None else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
