"""Building: without a compiler, after a killed build, and for every GPU architecture."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cuda_matmul_f32
import pytest
import torch
from cuda_matmul_f32 import _build, build_info

CSRC = Path(cuda_matmul_f32.__file__).parent / "csrc"
needs_extension = pytest.mark.skipif(build_info.module is None, reason=build_info.missing)


def _python(code: str, timeout: float = 100, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_without_a_compiler_torch_takes_over(tmp_path):
    code = """
import torch, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import cuda_matmul_f32 as m
print("warnings:", *(str(w.message) for w in caught if "cuda_matmul_f32" in str(w.message)))
a, b = torch.randn(4, 5, requires_grad=True), torch.randn(5, 6)
assert m.build_info.module is None and m.kernels("cpu") == ()
assert torch.equal(m.matmul(a, b), a @ b)
m.matmul(a, b).sum().backward()
assert a.grad.shape == (4, 5)
for wrong in (lambda: m.matmul(a.double(), b), lambda: m.matmul(a, b, kernel="naive")):
    try:
        wrong()
    except (TypeError, ValueError) as error:
        print(error)
"""
    done = _python(code, PATH=str(tmp_path), CXX="c++", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler (c++) was found" in done.stdout
    assert "a must be float32" in done.stdout
    assert "no kernel 'naive' for cpu tensors" in done.stdout


@needs_extension
def test_a_lock_left_by_a_killed_build_does_not_hang_the_next(tmp_path):
    # The finished build moved elsewhere, as a kill leaves it: torch's lock file there, no marker.
    copy = tmp_path / build_info.directory.name
    shutil.copytree(build_info.directory, copy)
    (copy / "finished").unlink()
    (copy / "lock").touch()
    code = "import cuda_matmul_f32 as m; print(m.build_info.directory)"
    done = _python(code, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(copy)
    assert (copy / "finished").exists()


@pytest.mark.parametrize(
    ("chosen", "gpus", "built"),
    [
        ("", [], "8.0;8.6;8.9;9.0a"),
        ("", [(9, 0), (8, 6), (9, 0)], "8.6;9.0a"),
        ("native", [(9, 0)], "9.0a"),
        ("8.0;8.6", [], "8.0;8.6"),
        ("8.0 9.0+PTX", [(9, 0)], "8.0 9.0a+PTX"),
        ("9.0a;10.0", [], "9.0a;10.0"),
        ("Ampere;Hopper", [], "Ampere;9.0a"),
        # Its PTX would run there without what this package's kernels rely on.
        ("8.0 8.6+PTX", [(9, 0)], "8.0 8.6+PTX;9.0a"),
        ("Ampere", [(9, 0), (8, 6)], "Ampere;9.0a"),
        ("9.0+PTX", [(10, 0)], "9.0a+PTX;10.0"),  # 9.0a's runs nowhere else
        # What an older GPU lacks it does not show, so that its code is as good here.
        ("8.0", [(8, 6), (7, 5)], "8.0"),
        # Covered already.
        ("8.0;12.0+PTX", [(12, 1)], "8.0;12.0+PTX"),
        ("10.0", [(10, 3)], "10.0"),
        ("10.0a", [(10, 3)], "10.0a;10.3"),
        ("Blackwell", [(10, 0)], "Blackwell"),
    ],
)
def test_a_list_made_for_torch_is_built_for_hopper_and_for_the_gpus_that_are_here(
    monkeypatch, chosen, gpus, built
):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", chosen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: gpus[i])
    assert _build.architectures() == built


@pytest.mark.slow
@pytest.mark.timeout(400)
@needs_extension
def test_a_build_killed_halfway_is_finished_by_the_next(tmp_path):
    code = "import torch, cuda_matmul_f32 as m; m.matmul(torch.ones(2, 3), torch.ones(3, 2))"
    env = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    first = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("*/build.ninja")):  # the compilers start next
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2.0)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    first.stderr.close()
    assert not list(tmp_path.glob("*/finished"))
    done = _python(code, timeout=280, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*/finished"))


def _nvcc() -> str | None:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    return shutil.which("nvcc") or (str(home) if home.exists() else None)


@pytest.mark.slow
@pytest.mark.skipif(_nvcc() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ["80", "86", "89", "90a"])
@pytest.mark.parametrize("source", sorted(CSRC.rglob("*.cu")), ids=lambda path: path.name)
def test_nvcc_compiles_without_a_warning(source, architecture, tmp_path):
    gencode = f"arch=compute_{architecture},code=sm_{architecture}"
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Werror", "all-warnings"]
    done = subprocess.run(
        [_nvcc(), *flags, f"-I{CSRC}", "-gencode", gencode, "-c", source, "-o", tmp_path / "out.o"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
