"""Start programs under torchrun as a user would, and never let one outlive its test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parents[1]
GRACE_S = 35  # torchrun kills its ranks 30 s after it was told to end

Completed = subprocess.CompletedProcess[str]
Running = subprocess.Popen[str]


@contextmanager
def running(
    script: Path, arguments: tuple[str, ...], ranks: int, folder: Path
) -> Iterator[Running]:
    """The script under plain python for 0 ranks, else under the real torchrun."""
    # --standalone: on a free port.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    process = subprocess.Popen(
        [sys.executable, *(launcher if ranks else []), str(script), *arguments],
        cwd=folder,  # not the package's folder: the scripts must work from anywhere
        # The environment is kept: on GPU machines it holds NCCL settings that must stay.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        end(process)


def end(process: Running) -> None:
    """Leave no rank behind: torchrun passes the request to end on to them."""
    if process.poll() is None:
        process.terminate()
        try:
            process.communicate(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def train_cases(ranks: int, cases: dict, folder: Path, device: str = "cpu") -> dict:
    """All cases in one process group of so many ranks: {name: (record, weights)}."""
    (folder / "cases.json").write_text(json.dumps(cases))
    worker = Path(__file__).with_name("worker.py")
    arguments = (str(folder / "cases.json"), str(folder / "out.pt"), device)
    with running(worker, arguments, ranks, folder) as process:
        output, errors = process.communicate(timeout=110 if ranks == 2 and device == "cpu" else 280)
    assert process.returncode == 0, output + errors
    return torch.load(folder / "out.pt", weights_only=True)
