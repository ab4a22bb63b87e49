"""One run of a benchmark: measures cases, prints what it finds, writes one record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import machine
from ._need import need
from .case import Case, Implementation, Row
from .progress import Progress, make_console
from .record import STATUSES, CaseRecord, Measurement, Record, derive, save
from .terminal import line, print_record

if TYPE_CHECKING:
    import torch


class Run:
    """Collects the cases of one run of one package's benchmark.

    directory: the package's folder; records go to its results/, and its commit is the run's.
    device: "cuda" or "cpu": what the work runs on, where only `add` is used and the harness cannot
        see it. By default what `measure` was given, else "cuda" where there is a GPU.
    """

    def __init__(
        self, package: str, *, directory: Path, version: str, device: str | None = None
    ) -> None:
        self.package, self.version, self.directory = package, version, Path(directory)
        self.device = device
        self.cases: list[CaseRecord] = []
        self.console = make_console()
        # Now, and not at the end: the code that was imported is what gets measured, even where the
        # tree changes meanwhile.
        self.commit, self.dirty = machine.commit(self.directory)
        self.busy = machine.share_in_use()
        if self.busy is not None and self.busy > 0.25:
            self.console.print(
                f"other programs keep {self.busy:.0%} of the processors busy: "
                "expect longer times and wide quartiles",
                style="yellow",
            )

    def measure(
        self,
        case: Case,
        implementations: Sequence[Implementation],
        *,
        device: torch.device | str,
        budget_s: float = 1.0,
        graph: bool = False,
        eager: bool = False,
    ) -> CaseRecord:
        """Verify each implementation, time those that are right in turns, verify them again.

        budget_s: seconds of samples for each implementation; at least 5 samples are taken, or 3
            where one call is longer than the budget, and at most 100.
        graph: time CUDA graph replays even where launches do not dominate.
        eager: time calls that an idle GPU gets one by one, as most programs launch them: the host's
            time then counts where it is longer than the GPU's. Otherwise it is left out.

        Returns the case with a row for each implementation. One that is wrong is "refused", one
        that raises "failed"; both with a reason and without samples.
        """
        names = [each.name for each in implementations]
        self._check_new(case.name)
        _check_unique(case.name, names)
        _check_baseline(case.name, case.baseline, names)
        need("torch")
        import torch

        from .measure import measure

        device = torch.device(device)
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device is {device}; the harness times 'cpu' and 'cuda'")
        if graph and eager:
            raise ValueError("graph and eager are two ways to launch the calls: choose one")
        with Progress(self.console) as progress:
            found = measure(case, implementations, device, budget_s, graph, eager, progress)
        if self.device != "cuda":
            self.device = device.type
        return self._take(found)

    def add(
        self,
        case_name: str,
        rows: Sequence[Row],
        *,
        baseline: str,
        params: Mapping[str, Any] | None = None,
    ) -> CaseRecord:
        """Take rows that the benchmark measured itself, and derive their ratios."""
        self._check_new(case_name)
        _check_unique(case_name, [f"{row.implementation}, {row.metric}" for row in rows])
        _check_baseline(case_name, baseline, [row.implementation for row in rows])
        taken = tuple(_from_row(case_name, row) for row in rows)
        return self._take(derive(CaseRecord(case_name, baseline, dict(params or {}), taken)))

    @property
    def exit_code(self) -> int:
        """1 where something of ours was refused or failed, else 0."""
        rows = [row for case in self.cases for row in case.rows]
        return int(any(row.ours and row.status in ("refused", "failed") for row in rows))

    def finish(self, out: Path | str | None = None) -> Path:
        """Print the table and write the record into `out`, by default results/; return its path."""
        if not self.cases:
            raise RuntimeError(f"{self.package}: nothing was measured, so there is no record")
        now = datetime.now(timezone.utc)
        host = machine.describe(self.device or machine.default_device(), self.busy)
        record = Record(
            package=self.package,
            version=self.version,
            created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            commit=self.commit,
            dirty=self.dirty,
            command=machine.command(),
            machine=host,
            versions=machine.versions(),
            cases=tuple(self.cases),
        )
        stem = f"{host['slug']}_{now:%Y-%m-%d}_{self.commit}"
        path = save(record, Path(out) if out else self.directory / "results", stem)
        self.console.print()
        print_record(record, self.console)
        self.console.print(f"record: {path}", highlight=False, markup=False)
        return path

    def _check_new(self, name: str) -> None:
        if any(case.name == name for case in self.cases):
            raise ValueError(f"case {name!r} is in this run already; names have to be unique")

    def _take(self, case: CaseRecord) -> CaseRecord:
        self.cases.append(case)
        for row in case.rows:
            self.console.print(line(case, row), highlight=False, markup=False)
        return case


def _check_unique(case: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"case {case!r} has {twice} more than once; names have to be unique")


def _check_baseline(case: str, baseline: str, names: list[str]) -> None:
    if baseline not in names:
        raise ValueError(f"case {case!r}: baseline {baseline!r} is none of {sorted(set(names))}")


def _from_row(case: str, row: Row) -> Measurement:
    where = f"case {case!r}, {row.implementation!r}, {row.metric!r}"
    samples = tuple(float(sample) for sample in row.samples)
    status, reason, error = row.status, row.reason, row.error
    if status not in STATUSES:
        raise ValueError(f"{where}: status is {status!r}; use one of {STATUSES}")
    if status != "ok" and not reason:
        raise ValueError(f"{where}: status is {status!r} without a reason")
    if status == "ok" and not samples:
        raise ValueError(f"{where}: no samples; give some, or another status with its reason")
    if error is not None and not math.isfinite(error):
        status, reason, error = "refused", f"its error is {error}", None
    elif not all(math.isfinite(sample) for sample in samples):
        status, reason = "refused", "a sample is not finite"
    return Measurement(
        implementation=row.implementation,
        metric=row.metric,
        unit=row.unit,
        better=row.better,
        ours=row.ours,
        status=status,
        reason=reason,
        error=error,
        timer="",
        calls=0,
        samples=samples if status == "ok" else (),
    )
