"""A record as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import format
from .record import NOISY, CaseRecord, Measurement, Record

STYLES = {"ok": "green", "skipped": "dim", "refused": "bold red", "failed": "bold red"}


def print_record(record: Record, console: Console) -> None:
    """Print one table of all cases, what is wrong with those that are not ok, and the machine."""
    table = Table(title=f"{record.package} on {record.processor}", title_justify="left")
    macro = any(row.metric != "time" for case in record.cases for row in case.rows)
    peaks = any(case.peak for case in record.cases)
    headers = ["case", "implementation", *(["metric"] if macro else []), "median", "q1–q3", "rate"]
    for header in (*headers, *(["of peak"] if peaks else []), "vs baseline", "error", "status"):
        right = header in ("median", "q1–q3", "rate", "of peak", "vs baseline", "error")
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    noisy = False
    for case in record.cases:
        for number, row in enumerate(case.rows):
            first = case.name if number == 0 else ""
            cells = [first, row.implementation, *([row.metric] if macro else [])]
            cells = [escape(cell) for cell in cells] + _numbers(case, row)
            if peaks:
                share = f"{row.rate / case.peak:.1%}" if row.rate and case.peak else ""
                cells.insert(-2, share)
            noisy = noisy or row.noisy
            status = "[yellow]noisy[/]" if row.noisy else f"[{STYLES[row.status]}]{row.status}[/]"
            table.add_row(*cells, status)
        table.add_section()
    console.print(table)
    if noisy:
        console.print(
            f"noisy: quartiles differ by more than {NOISY}x, so medians and ratios there say "
            "little; close other programs and run again",
            style="yellow",
        )
    for case in record.cases:
        for row in case.rows:
            if row.reason:
                where = f"{case.name}, {row.implementation}"
                console.print(escape(f"{row.status}: {where}: {row.reason}"), highlight=False)


def line(case: CaseRecord, row: Measurement) -> str:
    """Return one row as one line, for a log."""
    name = f"{case.name}  {row.implementation}"
    if row.status != "ok":
        return f"{name}  {row.status}: {row.reason}"
    metric = "" if row.metric == "time" else f"{row.metric} "
    return "  ".join([name, metric + " ".join(each for each in _numbers(case, row) if each)])


def _numbers(case: CaseRecord, row: Measurement) -> list[str]:
    """Return median, quartiles, rate, ratio and error as cells; empty where there is none."""
    if row.median is None or row.q1 is None or row.q3 is None:
        return [""] * 5
    return [
        format.quantity(row.median, row.unit),
        f"{format.quantity(row.q1, row.unit)}–{format.quantity(row.q3, row.unit)}",
        format.rate(row.rate, case.rate_unit) if row.rate else "",
        format.times(row.ratio) if row.ratio else "",
        format.error(row.error) if row.error is not None else "",
    ]
