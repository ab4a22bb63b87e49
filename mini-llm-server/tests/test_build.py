"""Every CUDA file compiles for every GPU architecture, also where there is no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import mini_llm_server
import pytest

CSRC = Path(mini_llm_server.__file__).parent / "csrc"


def nvcc() -> str | None:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    return shutil.which("nvcc") or (str(home) if home.exists() else None)


@pytest.mark.slow
@pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ["80", "86", "89", "90a"])
@pytest.mark.parametrize("source", sorted(CSRC.rglob("*.cu")), ids=lambda path: path.name)
def test_nvcc_compiles_without_a_warning_or_a_spill(
    source: Path, architecture: str, tmp_path: Path
) -> None:
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
