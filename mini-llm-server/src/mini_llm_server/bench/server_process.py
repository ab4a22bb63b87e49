"""Runs `mini-llm-server serve` as a process of its own for as long as a block lasts."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mini_llm_server.bench.client import BenchmarkError

START_LIMIT_S = 180


@contextmanager
def server(*options: str) -> Iterator[str]:
    """Start a server on a free port with these options and yield its URL.

    It never outlives the block.

    Raises:
        BenchmarkError: it ended, or was not ready in time; with its last words.
    """
    command = [sys.executable, "-m", "mini_llm_server.cli", "serve", "--port", "0", *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, "--log-level", "warning"],
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,
            )
        try:
            yield _wait_until_ready(process, log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end_with_parent() -> None:
    """Let Linux kill the server if this process is killed and can no longer do it itself."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit:
        text = log.read_text(errors="replace")
        if found := re.search(r"ready in .*?(http://\S+)", text):
            return found[1]
        if process.poll() is not None:
            last = (text.strip().splitlines() or ["it said nothing"])[-1]
            raise BenchmarkError(f"the server ended with status {process.returncode}: {last}")
        time.sleep(0.02)
    raise BenchmarkError(f"the server was not ready within {START_LIMIT_S} s")
