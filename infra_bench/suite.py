"""Run the benchmarks of several packages, one after the other, into one table and one report."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import format
from .load import load
from .markdown import caption, long_table
from .record import CaseRecord, Measurement, Record, RecordError
from .selection import choose, spread

HEADERS = (
    "package",
    "case",
    "metric",
    "baseline",
    "best",
    "value",
    "ratio",
    "its q1 – q3",
    "error",
)


@dataclass
class Part:
    """One package's share of the suite: the records it wrote, and what went wrong."""

    name: str
    records: list[Record] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def run_suite(folders: list[Path], out: Path, quick: bool, console: Console) -> int:
    """Run each folder's benchmark.py, go on past one that fails; return the exit status."""
    parts = []
    for folder in folders:
        console.rule(escape(folder.resolve().name))
        parts.append(_run_one(folder, out, quick))
    report = out / "report.md"
    out.mkdir(parents=True, exist_ok=True)
    report.write_text(_report(parts, out), encoding="utf-8")
    console.print()
    console.print(_terminal_table(parts))
    for part in parts:
        for fault in part.faults:
            console.print(f"failed: {part.name}: {fault}", style="bold red", markup=False)
    console.print(f"report: {report}", markup=False, highlight=False)
    return int(any(part.faults for part in parts))


def headlines(case: CaseRecord) -> list[tuple[Measurement, Measurement | None]]:
    """Return, for each metric, the best of ours next to the baseline; the baseline may be missing.

    The baseline is not its own headline, unless it is all there is.
    """
    found = []
    for metric in dict.fromkeys(row.metric for row in case.rows):
        rows = [row for row in case.rows if row.metric == metric and row.median is not None]
        base = next((row for row in rows if row.implementation == case.baseline), None)
        ours = [row for row in rows if row.ours and row is not base] or [r for r in rows if r.ours]
        if not ours:
            continue
        sign = 1 if ours[0].better == "higher" else -1
        found.append((max(ours, key=lambda row: sign * (row.median or 0.0)), base))
    return found


def _run_one(folder: Path, out: Path, quick: bool) -> Part:
    part = Part(folder.resolve().name)
    script, own = folder / "benchmark.py", out / folder.resolve().name
    if not script.is_file():
        part.faults.append(f"{script} is not there")
        return part
    before = set(own.glob("*.json"))
    command = [sys.executable, str(script), "--out", str(own), *(["--quick"] if quick else [])]
    code = subprocess.run(command).returncode  # its output goes where ours goes, as it comes
    for path in sorted(set(own.glob("*.json")) - before):
        try:
            part.records.append(load(path))
        except RecordError as fault:
            part.faults.append(str(fault))
    if code:
        part.faults.append(f"benchmark.py ended with status {code}")
    elif not part.records and not part.faults:
        part.faults.append("benchmark.py wrote no record")
    return part


def _terminal_table(parts: list[Part]) -> Table:
    table = Table(title="best of ours against each case's baseline", title_justify="left")
    for header in HEADERS:
        right = header in ("value", "ratio", "its q1 – q3", "error")
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    for part in parts:
        for record in part.records:
            for case in record.cases:
                for best, base in headlines(case):
                    table.add_row(*(escape(each) for each in _cells(part.name, case, best, base)))
        table.add_section()
    return table


def _cells(
    package: str, case: CaseRecord, best: Measurement, base: Measurement | None
) -> list[str]:
    value = format.quantity(best.median or 0.0, best.unit)
    if best.rate:
        value += f" ({format.rate(best.rate, case.rate_unit)})"
    return [
        package,
        case.name,
        best.metric,
        f"{case.baseline} {format.quantity(base.median or 0.0, base.unit)}"
        if base
        else case.baseline,
        best.implementation,
        value,
        format.times(best.ratio) if best.ratio else "",
        spread(best) + (" noisy" if best.noisy or (base and base.noisy) else ""),
        format.error(best.error) if best.error is not None else "",
    ]


def _report(parts: list[Part], out: Path) -> str:
    lines = ["# Benchmark report", ""]
    lines += ["| " + " | ".join(HEADERS) + " |", "| " + " | ".join(["---"] * len(HEADERS)) + " |"]
    for part in parts:
        for record in part.records:
            for case in record.cases:
                for best, base in headlines(case):
                    cells = [
                        each.replace("|", "\\|") for each in _cells(part.name, case, best, base)
                    ]
                    lines.append("| " + " | ".join(cells) + " |")
    for part in parts:
        lines += ["", f"## {part.name}"]
        lines += [line for fault in part.faults for line in ("", f"Failed: {fault}")]
        for record in part.records:
            assert record.path is not None
            link = Path(os.path.relpath(record.path, out)).as_posix()
            columns = ["median", "quartiles", "rate", "ratio", "spread", "error", "status"]
            lines += ["", long_table(choose(record), columns), "", caption(record, link)]
    return "\n".join(lines) + "\n"
