"""Each package alone: its folder copied out of the tree, installed in a clean venv, and used."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# The least that shows each package doing its job, run far from the checkout.
USES = {
    "cuda-matmul-f32": (
        "import torch, cuda_matmul_f32 as m;"
        "a, b = torch.randn(7, 5), torch.randn(5, 3);"
        "torch.testing.assert_close(m.matmul(a, b), a @ b)"
    ),
    "custom-gelu-ext": (
        "import torch, custom_gelu_ext as g;"
        "x = torch.randn(33, requires_grad=True);"
        "g.gelu(x).sum().backward();"
        "torch.testing.assert_close(g.gelu(x), torch.nn.functional.gelu(x))"
    ),
    "mini-llm-server": (
        "from mini_llm_server.llm import LLM;"
        "from mini_llm_server.engine.request import SamplingParams;"
        "done = LLM(model='dummy').generate(['hello'], SamplingParams(max_tokens=3));"
        "assert len(done) == 1, done"
    ),
}
SCRIPTS = {"dist-playground": ["ddp.py", "--steps", "2"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*USES, *SCRIPTS])
def test_a_package_alone_in_a_clean_venv(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    ignore = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    shutil.copytree(ROOT / name, folder, ignore=ignore)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    pip = [python, "-m", "pip", "install", "-q"]
    # The torch that is tested here, so that a machine without a GPU is spared a CUDA build.
    done = subprocess.run([*pip, f"torch=={torch.__version__}"], capture_output=True, text=True)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"pip knows no source of torch {torch.__version__}")
    assert done.returncode == 0, done.stderr
    subprocess.run([*pip, folder], check=True)

    if name in USES:
        subprocess.run([python, "-c", USES[name]], cwd=tmp_path, check=True)
    else:
        subprocess.run([python, folder / SCRIPTS[name][0], *SCRIPTS[name][1:]], check=True)

    # Without the harness benchmark.py says in one line what to install; with it, it runs.
    alone = subprocess.run(
        [python, folder / "benchmark.py", "--help"], capture_output=True, text=True
    )
    assert alone.returncode != 0
    assert "pip install" in alone.stderr
    assert "Traceback" not in alone.stderr
    subprocess.run([*pip, ROOT], check=True)
    subprocess.run([python, folder / "benchmark.py", "--help"], check=True)
