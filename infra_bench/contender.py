"""An implementation on its way through a measurement, and what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .case import Implementation
from .error import RefusalError
from .record import Measurement
from .timing import Pace, Timer

MOST_ROUNDS = 100


@dataclass
class Contender:
    """One implementation, its samples, and its status so far."""

    implementation: Implementation
    status: str = "ok"
    reason: str = ""
    error: float | None = None
    timer: str = ""
    pace: Pace | None = None
    fewest: int = 0
    spent_s: float = 0.0
    samples: list[float] = field(default_factory=list)

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Turn a refusal or a crash inside into this contender's status."""
        try:
            yield
            _wait()
        except RefusalError as refusal:
            self.fail("refused", str(refusal))
        except Exception as crash:
            self.fail("failed", one_line(crash))

    def fail(self, status: str, reason: str) -> None:
        """Take it out of the measurement: what it had so far counts for nothing."""
        self.status, self.reason = status, reason
        self.samples, self.pace, self.error = [], None, None

    def saw(self, error: float) -> None:
        """Keep the largest error of all checks."""
        self.error = max(error, self.error or 0.0)

    def sample(self, timer: Timer, turn: int, once: bool = False) -> Any:
        """Take a sample; return what its last call returned. See `Timer.sample`."""
        assert self.pace is not None
        start = time.perf_counter()
        seconds, returned = timer.sample(self.pace, turn, once)
        self.spent_s += time.perf_counter() - start
        self.samples.append(seconds)
        return returned

    def ends(self, budget_s: float) -> bool:
        """Say whether the coming sample is its last: another one would not fit the budget.

        Goes by what samples really took, which on a busy machine is not what calibration found.
        """
        count = len(self.samples) + 1
        left = budget_s - self.spent_s
        enough = count >= self.fewest and left < 2 * self.spent_s / max(1, len(self.samples))
        return enough or count >= MOST_ROUNDS

    def rounds_in(self, budget_s: float) -> int:
        """Return about how many samples it will take."""
        fitting = budget_s / max(self.pace.sample_s, 1e-6) if self.pace else 0
        return int(max(self.fewest, min(MOST_ROUNDS, fitting)))

    def record(self) -> Measurement:
        """Return the row for the record: samples only where every check passed."""
        return Measurement(
            implementation=self.implementation.name,
            metric="time",
            unit="s",
            better="lower",
            ours=self.implementation.ours,
            status=self.status,
            reason=self.reason,
            error=self.error,
            timer=self.timer if self.samples else "",
            calls=self.pace.calls if self.pace else 0,
            samples=tuple(float(f"{sample:.6g}") for sample in self.samples),
        )


def _wait() -> None:
    """Bring an asynchronous CUDA error to the implementation that caused it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def is_lost() -> bool:
    """Say whether a crash on the GPU has made it unusable for the rest of the process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def one_line(crash: Exception) -> str:
    """Return type and first line of an exception, without this machine's folders."""
    text = (str(crash).strip().splitlines() or [""])[0]
    for folder in (Path.cwd(), Path.home()):
        text = text.replace(f"{folder}/", "")
    return f"{type(crash).__name__}: {text}"[:300]
