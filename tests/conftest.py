"""What the harness's tests share: a run, and a product of matrices to measure."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from infra_bench import Case, Implementation, Measurement, Row, Run

SIZE = 64


def draw_matrices(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    shape = (SIZE, SIZE)
    return tuple(torch.randn(shape, generator=generator, device=generator.device) for _ in "ab")


@contextmanager
def alone(folder: Path) -> Iterator[Run]:
    """Make a run of a known commit; matrices this small had better not wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFRA_BENCH_COMMIT", "abc1234")
        yield Run("demo", directory=folder, version="0.1.0")
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with alone(tmp_path) as run:
        yield run


@pytest.fixture
def product() -> Callable[..., Case]:
    """Make a case that multiplies two 64x64 matrices; its baseline is called "honest"."""

    def make(**changes: Any) -> Case:
        settings: dict[str, Any] = {
            "name": "product",
            "inputs": draw_matrices,
            "reference": torch.matmul,
            "tolerance": 1e-5,
            "baseline": "honest",
            "flops": 2.0 * SIZE**3,
        }
        return Case(**{**settings, **changes})

    return make


@pytest.fixture
def measured(run: Run, product: Callable[..., Case]) -> Callable[..., Measurement]:
    """Measure a function against an honest one; return its row, after checking the honest one's."""

    def measure(
        function: Callable[..., Any],
        case: Case | None = None,
        honest: Callable[..., Any] = torch.matmul,
        device: str = "cpu",
    ) -> Measurement:
        result = run.measure(
            case or product(),
            [Implementation("honest", honest, ours=False), Implementation("other", function)],
            device=device,
            budget_s=0.02,
        )
        peer, other = result.rows
        assert (peer.status, peer.reason) == ("ok", "")
        return other

    return measure


@pytest.fixture
def served(tmp_path: Path, measured_once: Path) -> Path:
    """Return the path of a record with one timed case and one of a server."""
    (tmp_path / "results").mkdir()
    return Path(shutil.copy(measured_once, tmp_path / "results"))


@pytest.fixture(scope="session")
def measured_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    with alone(folder) as run:
        return serve(run)


def serve(run: Run) -> Path:
    run.measure(
        Case(
            "64",
            draw_matrices,
            torch.matmul,
            1e-5,
            "torch.matmul",
            flops=2.0 * SIZE**3,
            params={"N": 64},
        ),
        [
            Implementation("torch.matmul", torch.matmul, ours=False),
            Implementation("ours", lambda a, b: torch.mm(a, b)),
            Implementation("wrong", lambda a, b: a + b),
            Implementation("absent", torch.mm, skip="needs a GPU"),
        ],
        device="cpu",
        budget_s=0.01,
    )
    run.add(
        "8 at once",
        [
            Row("fifo", "output tokens", "tok/s", [10.0, 11.0, 12.0]),
            Row("continuous", "output tokens", "tok/s", [40.0, 44.0, 60.0], error=0.0),
            Row("fifo", "TTFT p50", "s", [2.0, 2.0, 2.2], better="lower"),
            Row("continuous", "TTFT p50", "s", [0.2, 0.25, 0.2], better="lower"),
        ],
        baseline="fifo",
        params={"concurrency": 8},
    )
    return run.finish()
