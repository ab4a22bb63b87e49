"""Compile this package's C++/CUDA extension at first import, and cache it.

The build is keyed by everything that decides its result (sources, torch, compilers and their flags,
GPU architectures), so an unchanged tree loads a finished library in milliseconds and a changed one
can never load a stale library. This file holds nothing of its package but the folder it lies in.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

PACKAGE = Path(__file__).resolve().parent
NAME = f"_{PACKAGE.name}_C"
CSRC = PACKAGE / "csrc"
# Built when no GPU is visible (a container build): one library for Ampere, Ada and Hopper. A newer
# GPU is built for where it is visible, or named in TORCH_CUDA_ARCH_LIST.
PORTABLE_ARCHITECTURES = "8.0;8.6;8.9;9.0a"
# What torch takes the names in TORCH_CUDA_ARCH_LIST for; of Hopper we make 9.0a.
NAMED = {
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}


@dataclass(frozen=True)
class BuildInfo:
    """What was built: ``module`` is None where only the fallback to torch is possible."""

    module: ModuleType | None
    cuda: bool
    architectures: str
    directory: Path | None
    missing: str  # one sentence naming what kept us from building all of it; empty when nothing did


def cxx() -> list[str]:
    """Return the C++ compiler's command: CXX may be several words, as in "ccache g++"."""
    return shlex.split(os.environ.get("CXX", "c++")) or [""]


def cpu_missing() -> str:
    """Say what keeps any extension from being built here, or return an empty string."""
    if shutil.which(cxx()[0]) is None:
        return f"no C++ compiler ({cxx()[0]}) was found (Debian/Ubuntu: apt install g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's C headers were not found (Debian/Ubuntu: apt install python3-dev)"
    return ""


def cuda_home() -> Path | None:
    """Return the CUDA toolkit's folder: one that holds both nvcc and its headers.

    torch takes the parent of the nvcc on PATH, which may be a wrapper script far from the toolkit.
    """
    from torch.utils import cpp_extension

    for home in (os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME, "/usr/local/cuda"):
        folder = Path(home or os.devnull)
        if (folder / "bin" / "nvcc").exists() and (folder / "include/cuda_runtime.h").exists():
            return folder
    return None


def cuda_missing() -> str:
    """Say what keeps the CUDA kernels from being built here, or return an empty string."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    home = cuda_home()
    if home is None:
        return f"nvcc was not found (install CUDA toolkit {torch.version.cuda} or set CUDA_HOME)"
    nvcc = home / "bin" / "nvcc"
    release = re.search(r"release (\d+)", _version(str(nvcc)))
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        have = release[1] if release else "unknown"
        return f"{nvcc} is CUDA {have} but torch needs CUDA {torch.version.cuda}: set CUDA_HOME"
    return ""


def architectures() -> str:
    """Return the GPU architectures to compile for, in TORCH_CUDA_ARCH_LIST's notation."""
    visible = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    here = sorted({torch.cuda.get_device_capability(i) for i in visible})
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST", "native")
    if chosen in ("", "native"):
        return ";".join(map(_notation, here)) or PORTABLE_ARCHITECTURES
    # Images that come with torch set it to torch's own list, which leaves the "a" out, and may be
    # older than this GPU. PTX for an older one runs here, but from Hopper on without what kernels
    # rely on where they find that GPU: launched before the last kernel has ended, they wait for it.
    chosen = re.sub(r"9\.0(?!a)|Hopper", "9.0a", chosen)
    left = [gpu for gpu in here if gpu >= (9, 0) and not covers(chosen, gpu, oldest_ptx=(9, 0))]
    return ";".join([chosen, *map(_notation, left)])


def _notation(gpu: tuple[int, int]) -> str:
    # The "a" suffix unlocks Hopper's own instructions (TMA, wgmma, setmaxnreg).
    return "9.0a" if gpu == (9, 0) else f"{gpu[0]}.{gpu[1]}"


def covers(architectures: str, gpu: tuple[int, int], oldest_ptx: tuple[int, int] = (0, 0)) -> bool:
    """Say whether code for one of the architectures runs on a GPU of this compute capability.

    Args:
        architectures: in TORCH_CUDA_ARCH_LIST's notation.
        oldest_ptx: PTX for an older one does not count.
    """
    for name, numbers in NAMED.items():
        architectures = architectures.replace(name, numbers)
    for each in re.split("[ ;]+", architectures):
        entry = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", each)
        if entry is None:
            continue
        made_for = int(entry[1]), int(entry[2])
        if entry[3] == "a":  # for that one alone, its PTX too
            fits = made_for == gpu
        else:
            by_ptx = entry[4] is not None and made_for >= oldest_ptx
            fits = made_for <= gpu and (made_for[0] == gpu[0] or by_ptx)
        if fits:
            return True
    return False


def build() -> BuildInfo:
    """Load the cached extension, compiling it first where it is new.

    Raises:
        RuntimeError: the compiler ran and failed; the message carries its output.
    """
    missing = cuda_missing()
    with_cuda = not missing
    if cpu := cpu_missing():
        warnings.warn(f"{PACKAGE.name}: {cpu}; torch's own kernels are used", stacklevel=2)
        return BuildInfo(None, False, "", None, cpu)

    arch = architectures() if with_cuda else ""
    sources = [s for s in sorted(CSRC.rglob("*.cpp")) if with_cuda or "cuda" not in s.parts]
    sources += sorted(CSRC.rglob("*.cu")) if with_cuda else []
    openmp = _openmp_flags()
    cflags = ["-O3", "-std=c++20", *_native_flags(), *openmp]
    cflags += ["-DWITH_CUDA"] if with_cuda else []
    nvcc_flags = ["-O3", "-std=c++17", "-lineinfo", "--expt-relaxed-constexpr"]
    directory = _cache_root() / f"{NAME}-{_digest(arch, cflags, nvcc_flags)}"
    library = directory / f"{NAME}.so"
    finished = directory / "finished"  # written last: a killed build leaves no such file

    if not finished.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with _exclusive(directory / "build.lock"):
            if not finished.exists():
                # We hold the lock, so a baton of torch's is a killed build's, and would hang us.
                (directory / "lock").unlink(missing_ok=True)
                _compile(sources, directory, cflags, openmp, nvcc_flags, arch)
                finished.touch()
    return BuildInfo(_import(library), with_cuda, arch, directory, missing)


def _compile(
    sources: list[Path],
    directory: Path,
    cflags: list[str],
    ldflags: list[str],
    nvcc_flags: list[str],
    arch: str,
) -> None:
    from torch.utils import cpp_extension

    target = f"CPU and CUDA {arch}" if arch else "CPU"
    with _environment(arch, directory), _announce(f"compiling {PACKAGE.name} for {target}"):
        cpp_extension.load(
            name=NAME,
            sources=[str(s) for s in sources],
            build_directory=str(directory),
            extra_cflags=cflags,
            extra_ldflags=ldflags,
            extra_cuda_cflags=nvcc_flags,
            extra_include_paths=[str(CSRC)],
            with_cuda=bool(arch),
            is_python_module=False,  # built here, imported by path in _import
            is_standalone=False,
        )


def _import(library: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(library))
    spec = importlib.util.spec_from_file_location(NAME, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _native_flags() -> list[str]:
    # The library is compiled where it runs, so it may use all of this CPU's vector instructions.
    return ["-mcpu=native"] if platform.machine() in ("arm64", "aarch64") else ["-march=native"]


def _openmp_flags() -> list[str]:
    """Return what makes at::parallel_for parallel: without OpenMP its header runs one thread.

    Apple's compiler has no OpenMP: there the kernels run on one core.
    """
    probe = [*cxx(), "-fopenmp", "-E", "-x", "c++", "-"]
    found = subprocess.run(probe, input="#include <omp.h>", capture_output=True, text=True)
    return ["-fopenmp"] if found.returncode == 0 else []


def _cache_root() -> Path:
    if chosen := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / PACKAGE.name


@functools.cache
def _version(*command: str) -> str:
    return subprocess.run([*command, "--version"], capture_output=True, text=True).stdout


def _digest(arch: str, cflags: list[str], nvcc_flags: list[str]) -> str:
    digest = hashlib.sha256()
    # The CPU's name, for -march=native: a home folder may be shared by unlike machines.
    facts = [torch.__version__, sys.version, _cpu(), *cxx(), _version(*cxx()), *cflags]
    if arch:
        facts += [arch, _version(f"{cuda_home()}/bin/nvcc"), *nvcc_flags]
    digest.update(repr(facts).encode())
    for path in sorted(p for p in CSRC.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(CSRC)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((x for x in lines if x.startswith(("flags", "Features"))), "")
    return platform.processor()


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel lets go of when its holder dies, however it dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _environment(arch: str, directory: Path) -> Iterator[None]:
    """Let torch find the compiler and CUDA, and ninja beside a Python whose venv is not active."""
    saved = dict(os.environ)
    scripts = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    os.environ["PATH"] = os.pathsep.join([*scripts, os.environ.get("PATH", "")])
    if len(cxx()) > 1:  # torch takes CXX for one word
        wrapper = directory / "cxx"
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(cxx())} "$@"\n')
        wrapper.chmod(0o755)
        os.environ["CXX"] = str(wrapper)
    if arch:
        from torch.utils import cpp_extension

        cpp_extension.CUDA_HOME = str(cuda_home())
        os.environ["TORCH_CUDA_ARCH_LIST"] = arch
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


@contextlib.contextmanager
def _announce(what: str) -> Iterator[None]:
    """Say on stderr what is being done and for how long, so that a first import is no mystery."""
    started = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1.0):
            print(f"\r{what} ... {time.monotonic() - started:.0f} s", end="", file=sys.stderr)

    ticker = threading.Thread(target=tick, daemon=True)
    print(f"{what} (once; cached afterwards)", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        ticker.start()
    try:
        yield
    finally:
        done.set()
        if ticker.is_alive():
            ticker.join()
    seconds = time.monotonic() - started
    end = "\r" if sys.stderr.isatty() else ""
    print(f"{end}compiled {PACKAGE.name} in {seconds:.0f} s", file=sys.stderr, flush=True)
