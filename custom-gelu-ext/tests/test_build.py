"""Building: without a compiler, with a compiler that fails, and for every GPU architecture."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import custom_gelu_ext
import pytest
from custom_gelu_ext import _build, build_info

CSRC = Path(custom_gelu_ext.__file__).parent / "csrc"

WITHOUT_COMPILER = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import custom_gelu_ext
print(*(w.message for w in caught if "custom_gelu_ext" in str(w.message)), sep="\\n")
import torch, torch.nn.functional as F
assert custom_gelu_ext.build_info.module is None
x = torch.randn(7, requires_grad=True)
assert torch.equal(custom_gelu_ext.gelu(x, "tanh"), F.gelu(x, approximate="tanh"))
custom_gelu_ext.GELU()(x).sum().backward()
assert x.grad.shape == (7,)
for wrong in (torch.ones(3).int(), [1.0]):
    try:
        custom_gelu_ext.gelu(wrong)
    except TypeError as error:
        print(error)
"""


def python(code: str, timeout: float = 100, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_without_a_compiler_torch_takes_over(tmp_path):
    done = python(
        WITHOUT_COMPILER, PATH=str(tmp_path), CXX="c++", TORCH_EXTENSIONS_DIR=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    warning, *errors = done.stdout.splitlines()
    assert "no C++ compiler (c++) was found" in warning
    assert "torch's own kernels are used" in warning
    assert "got torch.int32; convert first" in errors[0]
    assert "got list" in errors[1]


def test_a_compiler_that_fails_says_so(tmp_path):
    compiler = tmp_path / "broken-c++"
    # It answers torch's question for its version, and fails to compile.
    script = '#!/bin/sh\ncase " $* " in *" -c "*) echo "this compiler is broken"; exit 1;; esac\n'
    compiler.write_text(script + 'exec c++ "$@"\n')
    compiler.chmod(0o755)
    done = python("import custom_gelu_ext", CXX=str(compiler), TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert done.returncode != 0
    assert "RuntimeError" in done.stderr
    assert "this compiler is broken" in done.stderr
    assert not list(tmp_path.glob("*/finished"))


def test_another_version_of_a_compiler_is_another_build(monkeypatch):
    versions = {"c++": "13.1", "nvcc": "13.0"}
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(_build, "_version", lambda command: versions[Path(command).name])
    digests = {_build._digest("9.0a", [], [])}
    for compiler in versions:
        versions[compiler] = "14.0"
        digests.add(_build._digest("9.0a", [], []))
    assert len(digests) == 3


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(build_info.module is None, reason=build_info.missing)
def test_a_compiler_of_several_words(tmp_path):
    launcher = tmp_path / "launcher"  # such as ccache
    launcher.write_text('#!/bin/sh\nexec "$@"\n')
    launcher.chmod(0o755)
    code = "import custom_gelu_ext as g; print(g.build_info.module)"
    compiler, cache = f"{launcher} c++ -pipe", str(tmp_path)
    done = python(code, timeout=380, CXX=compiler, TORCH_EXTENSIONS_DIR=cache)
    assert done.returncode == 0, done.stderr
    assert cache in done.stdout, done.stderr
    assert "not compatible" not in done.stderr  # torch's word for a compiler that it cannot place


def nvcc() -> str | None:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    return shutil.which("nvcc") or (str(home) if home.exists() else None)


@pytest.mark.slow
@pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ["80", "86", "89", "90a"])
@pytest.mark.parametrize("source", sorted(CSRC.rglob("*.cu")), ids=lambda path: path.name)
def test_nvcc_compiles_without_a_warning_or_a_spill(source, architecture, tmp_path):
    # torch's own flags: they take the operators of the 16-bit types away.
    no_operators = ["HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS"]
    command = [nvcc(), "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Werror", "all-warnings"]
    command += [f"-D__CUDA_NO_{name}__" for name in no_operators]
    command += ["-Xptxas=-v", f"-I{CSRC}", "-c", str(source), "-o", str(tmp_path / "out.o")]
    command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = [line for line in done.stderr.splitlines() if "spill stores" in line]
    assert spills, "ptxas reported nothing"
    assert all(" 0 bytes spill stores, 0 bytes spill loads" in line for line in spills), spills
