"""Wheels with the kernels compiled in, and the doctor, each in a clean virtual environment.

The environment holds nothing but the wheel; torch and what it needs are lent by a .pth file, so
that no test downloads them again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_gelu_ext import _build, build_info, doctor

PROJECT = Path(__file__).parents[1]

USE = """
import warnings
warnings.simplefilter("error")
import torch, custom_gelu_ext as g
assert "venv" in g.__file__, g.__file__
x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
b = torch.randn(6, dtype=torch.float64, requires_grad=True)
for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
    assert check(g.gelu, (x,)) and check(g.bias_gelu, (x, b))
assert torch.autograd.gradcheck(lambda x: g.geglu(x, x * 2), (x,))
assert torch.autograd.gradcheck(lambda x: g.gelu(x.t()[::2]), (x,))
assert g.bias_gelu(torch.randn(0, 16)[:, ::2], torch.ones(8)).shape == (0, 8)
assert torch.ops.custom_gelu_ext.gelu_8bit(torch.tensor([float("nan")]))[1].item() == 255
source = x.float() * 1
y = source * source.detach()
with torch.inference_mode():
    g.gelu_(source.detach())
try:
    y.sum().backward()
    raise SystemExit("gelu_ under inference_mode was not noticed")
except RuntimeError:
    pass
for save in ("recompute", "8bit", "1bit"):
    g.MLP(6, 9, save=save)(torch.randn(3, 6)).sum().backward()
compiled = torch.compile(lambda x: g.gelu(x) * 2, backend="aot_eager", fullgraph=True)
compiled(x).sum().backward()
torch.vmap(torch.func.grad(lambda x: g.gelu(x).sum()))(x.detach())
print(g.gelu(torch.tensor(-8.0)).item())
"""


def lend_torch(venv: Path) -> Path:
    """Make an empty environment that can import this one's torch, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    # As plain paths: the .pth files of editable installs (ours among them) are not read there.
    paths = dict.fromkeys(
        [sysconfig.get_path("purelib"), *(p for p in sys.path if "-packages" in p)]
    )
    (site / "lent.pth").write_text("\n".join(paths))
    return venv / "bin/python"


def install(wheel: Path, venv: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(next(venv.glob("lib/python*/site-packages")))


def build_wheel(kind: str, folder: Path, cuda: str = "0") -> Path:
    source = folder / "source"
    ignore = shutil.ignore_patterns("*.egg-info", "build", "__pycache__", "_built.json", "*.so")
    shutil.copytree(PROJECT, source, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q"]
    done = subprocess.run(
        [*pip, "-w", folder, source],
        env={**os.environ, "CUSTOM_GELU_EXT_BUILD": kind, "CUSTOM_GELU_EXT_CUDA": cuda},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(python: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [python, *arguments],
        env={**clean, **environment},
        cwd=python.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(build_info.module is None, reason=build_info.missing)
@pytest.mark.parametrize("kind", ["aot", "stable"])
def test_a_wheel_with_the_kernels_in_it(kind, tmp_path):
    wheel = build_wheel(kind, tmp_path)
    assert ("abi3" in wheel.name) == (kind == "stable")
    python = lend_torch(tmp_path / "venv")
    install(wheel, tmp_path / "venv")
    # With no compiler to be found: what runs was in the wheel.
    done = run(
        python, "-c", USE, PATH=str(tmp_path), CXX="none", TORCH_EXTENSIONS_DIR=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(-4.976769e-15, rel=1e-5)
    done = run(python, "-m", "custom_gelu_ext.doctor", PATH=str(tmp_path))
    assert "in the wheel" in done.stdout, done.stdout + done.stderr
    assert "our kernels run" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(_build.cuda_home() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("chosen", ["", "8.6"])
def test_a_wheel_built_without_a_gpu_runs_on_newer_ones(chosen, tmp_path):
    shutil.copytree(PROJECT / "src", tmp_path / "src")
    shutil.copy(PROJECT / "setup.py", tmp_path)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TORCH_CUDA_ARCH_LIST": chosen}
    environment |= {"CUSTOM_GELU_EXT_BUILD": "stable"}
    command = [sys.executable, "setup.py", "--version"]  # writes what would be built
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    facts = json.loads((tmp_path / "src/custom_gelu_ext/_built.json").read_text())
    assert _build.covers(facts["architectures"], (12, 0)) == (chosen == "")


EVERY_KERNEL = """
def every_kernel(a, b, c, bias):
    import torch
    from custom_gelu_ext import MLP, gelu
    ops, results = torch.ops.custom_gelu_ext, []
    for approximate in ("none", "tanh"):
        y, bits = ops.gelu_1bit(a, approximate)
        results += [y, bits, *ops.gelu_8bit(a, approximate)]
        results += [ops.gelu_1bit_backward(b, y, bits, approximate)]
        results += [ops.gelu(a, approximate), ops.gelu_backward(a, b, approximate)]
        results += ops.gelu_double_backward(a, b, c, approximate)
        results += [ops.bias_gelu(a, bias, approximate), ops.geglu(a, b, approximate)]
        results += ops.bias_gelu_backward(a, b, bias, approximate)
        results += ops.geglu_backward(a, b, c, approximate)
        leaf = a.clone().requires_grad_()
        results += torch.autograd.grad(gelu(leaf, approximate), leaf, b)
    return [x.cpu() for x in results]
"""
USE_CUDA = """
import sys, torch, custom_gelu_ext
from custom_gelu_ext import _ahead
assert "venv" in custom_gelu_ext.__file__ and _ahead.kind() == "stable"
inputs = torch.load(sys.argv[1])
torch.save({k: every_kernel(*(x.cuda() for x in v)) for k, v in inputs.items()}, sys.argv[2])
"""


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not build_info.cuda, reason=build_info.missing)
def test_the_stable_wheel_computes_on_the_gpu_what_the_build_at_hand_does(tmp_path):
    wheel = build_wheel("stable", tmp_path, cuda="1")
    python = lend_torch(tmp_path / "venv")
    install(wheel, tmp_path / "venv")
    inputs = {
        str(dtype): [torch.randn(33, 264).to(dtype) for _ in range(3)]
        + [torch.randn(264).to(dtype)]
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    }
    torch.save(inputs, tmp_path / "inputs.pt")
    scope: dict[str, Any] = {}
    exec(EVERY_KERNEL, scope)
    expected = {k: scope["every_kernel"](*(x.cuda() for x in v)) for k, v in inputs.items()}
    files = (str(tmp_path / "inputs.pt"), str(tmp_path / "results.pt"))
    done = run(python, "-c", EVERY_KERNEL + USE_CUDA, *files, PATH=str(tmp_path), CXX="none")
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "results.pt"), expected, rtol=0, atol=0)
    done = run(python, "-m", "custom_gelu_ext.doctor", PATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in the wheel" in done.stdout


@pytest.mark.slow
def test_an_ahead_of_time_wheel_for_another_torch_is_not_loaded(tmp_path):
    package = tmp_path / "custom_gelu_ext"
    shutil.copytree(PROJECT / "src/custom_gelu_ext", package)
    facts = '{"kind": "aot", "torch": "1.0.0", "architectures": "", "missing": ""}'
    (package / "_built.json").write_text(facts)
    (package / "_aot.so").write_bytes(b"no library")
    code = (
        "import custom_gelu_ext as g, torch; print(g.__file__, g.gelu(torch.ones(2)).sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    assert "aot library is not used: it was compiled for torch 1.0.0" in done.stderr


def test_the_doctor_finds_what_is_here(capsys):
    healthy = doctor.main() == 0
    printed = capsys.readouterr().out
    assert healthy == (build_info.module is not None and "torch's own GELU runs" not in printed)
    for word in ("torch", "C++ compiler", "nvcc", "library", "CPU"):
        assert word in printed


def test_the_doctor_without_a_compiler(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "custom_gelu_ext.doctor"],
        env={
            **os.environ,
            "PATH": str(tmp_path),
            "CXX": "c++",
            "TORCH_EXTENSIONS_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no C++ compiler (c++) was found" in done.stdout
    assert done.stderr.count("torch's own kernels are used") == 1  # the package's one warning


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        ("8.0;9.0a", (9, 0), True),
        ("8.0", (8, 6), True),  # machine code runs on later minor versions of its major one
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("9.0a", (10, 0), False),
        ("9.0a+PTX", (10, 0), False),  # PTX with the "a" is for that one GPU as well
        ("", (9, 0), False),
        ("Ampere", (8, 6), True),
        ("Ampere;9.0a", (12, 0), True),  # the names stand for PTX too
        ("Volta", (9, 0), False),
    ],
)
def test_which_gpus_a_build_covers(architectures, capability, covered):
    assert _build.covers(architectures, capability) == covered
