"""The JSON record of one run: what it holds, how it is written, and how a broken one is refused."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from .case import Better
from .statistics import ratio, summarize

SCHEMA = 1
NOISY = 1.5  # third quartile over first
STATUSES = ("ok", "skipped", "refused", "failed")


class RecordError(ValueError):
    """A record that cannot be trusted: the message names the file, the field and the fault."""


@dataclass(frozen=True)
class Measurement:
    """One metric of one implementation in one case.

    samples are in `unit` (seconds a call, for a case that the harness timed); all numbers after
    them are derived from samples by `derive`, and None where there is nothing to derive from.
    """

    implementation: str
    metric: str
    unit: str
    better: Better
    ours: bool
    status: str
    reason: str
    error: float | None
    timer: str
    calls: int
    samples: tuple[float, ...]
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    minimum: float | None = None
    ratio: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    rate: float | None = None

    @property
    def noisy(self) -> bool:
        """Whether its quartiles lie too far apart for its median to be believed."""
        return bool(self.q1 and self.q3 and self.q3 > NOISY * self.q1)


@dataclass(frozen=True)
class CaseRecord:
    """One case with all its rows; `rate` in rows is in `rate_unit` (FLOP/s or B/s)."""

    name: str
    baseline: str
    params: dict[str, Any]
    rows: tuple[Measurement, ...]
    flops: float = 0.0
    bytes: float = 0.0
    peak_flops: float = 0.0
    peak_bytes: float = 0.0
    tolerance: float | None = None
    seed: int | None = None

    @property
    def rate_unit(self) -> str:
        """FLOP/s where the case counts operations, B/s where it counts only bytes, else empty."""
        return "FLOP/s" if self.flops else "B/s" if self.bytes else ""

    @property
    def peak(self) -> float:
        """The most that `rate` can be on this machine, in `rate_unit`; 0 where not known."""
        return self.peak_flops if self.flops else self.peak_bytes


@dataclass(frozen=True)
class Record:
    """Everything about one run."""

    package: str
    version: str
    created: str
    commit: str
    dirty: bool
    command: str
    machine: dict[str, Any]
    versions: dict[str, Any]
    cases: tuple[CaseRecord, ...]
    schema: int = SCHEMA
    path: Path | None = field(default=None, compare=False)

    @property
    def processor(self) -> str:
        """What did the work, in words: `2 x NVIDIA H100 80GB HBM3`, or the CPU with its cores."""
        gpu, cpu = self.machine.get("gpu"), self.machine["cpu"]
        if gpu and self.machine["device"] == "cuda":
            count = f"{gpu['count']} x " if gpu["count"] > 1 else ""
            return f"{count}{gpu['name']}"
        return f"{cpu['model']}, {cpu['threads']} thread{'s' if cpu['threads'] > 1 else ''}"


def derive(case: CaseRecord) -> CaseRecord:
    """Return the case with every derived number computed anew from its samples."""
    bases = {
        row.metric: row
        for row in case.rows
        if row.implementation == case.baseline and row.status == "ok"
    }
    work = case.flops or case.bytes

    def complete(row: Measurement) -> Measurement:
        if row.status != "ok" or not row.samples:
            return row
        own = summarize(row.samples)
        base = bases.get(row.metric)
        against = ratio(row.samples, base.samples, row.better) if base else None
        timed = work and row.metric == "time" and own.median > 0
        return replace(
            row,
            median=own.median,
            q1=own.q1,
            q3=own.q3,
            minimum=min(row.samples),
            ratio=against.median if against else None,
            ratio_q1=against.q1 if against else None,
            ratio_q3=against.q3 if against else None,
            rate=work / own.median if timed else None,
        )

    return replace(case, rows=tuple(complete(row) for row in case.rows))


def save(record: Record, directory: Path, stem: str) -> Path:
    """Write the record as `<stem>.json`, or `<stem>-2.json` ... where that is taken.

    The text goes to a temporary file first: an interrupted run leaves a whole record or none, and
    never overwrites one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data = asdict(record)
    del data["path"]
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    with NamedTemporaryFile(
        "w", dir=directory, prefix=stem, suffix=".tmp", delete=False, encoding="utf-8"
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.close()
            temporary.chmod(0o644)
            for number in range(1, 1_000_000):
                path = directory / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
                with contextlib.suppress(FileExistsError):
                    _place(temporary, path)
                    return path
        finally:
            temporary.unlink(missing_ok=True)
    raise RecordError(f"{directory}: a million records named {stem} are there already")


def _place(temporary: Path, path: Path) -> None:
    """Give the finished file its name; FileExistsError where the name is taken."""
    try:
        os.link(temporary, path)  # unlike a rename it fails when two runs end at once
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)
