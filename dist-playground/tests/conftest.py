"""The scripts as fixtures."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for launching and one_process, which tests share
from launching import PACKAGE, Completed, running


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
