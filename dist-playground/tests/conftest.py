"""Start the scripts as a user would, and never let one outlive its test."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for one_process, which several tests share
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
        if process.poll() is None:
            process.terminate()  # torchrun passes it on to the ranks
            try:
                process.communicate(timeout=GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., object]:
    """start(script, *arguments, ranks=0): a context manager that gives the running process."""

    def start_script(script: str, *arguments: str, ranks: int = 0) -> object:
        return running(PACKAGE / script, arguments, ranks, tmp_path)

    return start_script


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Completed]:
    """launch(script, *arguments, ranks=0, timeout=60): run the script to its end."""

    def run(script: str, *arguments: str, ranks: int = 0, timeout: float = 60) -> Completed:
        with running(PACKAGE / script, arguments, ranks, tmp_path) as process:
            output, errors = process.communicate(timeout=timeout)
        return Completed(process.args, process.returncode, output, errors)

    return run
