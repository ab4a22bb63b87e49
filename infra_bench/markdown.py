"""A record's rows as a Markdown table, with the line that says where its figures are from."""

from __future__ import annotations

from .record import Record
from .selection import AGAINST, FIELDS, NONE, NUMBERS, Entry, MarkerError, unique

NAMES = {"quartiles": "q1 – q3", "min": "best", "spread": "its q1 – q3", "share": "of the peak"}


def long_table(entries: list[Entry], columns: list[str]) -> str:
    """Return a table with a line for each row: case and metric where there are several."""
    keys = [
        dimension
        for dimension in ("case", "implementation", "metric")
        if dimension == "implementation"
        or (dimension not in columns and len(unique(e.label(dimension) for e in entries)) > 1)
    ]
    columns = [column for column in keys if column not in columns] + columns
    lines = [
        [e.cell(column) if _is_field(column) else e.label(column) for column in columns]
        for e in entries
    ]
    headers = [_header(column, entries) for column in columns]
    return _table(headers, [_is_number(column) for column in columns], lines) + _reasons(entries)


def pivot_table(entries: list[Entry], rows: str, columns: str, cell: str) -> str:
    """Return a table with one dimension down, another across, and one field in the cells."""
    down = unique(e.label(rows) for e in entries)
    across = unique(e.label(columns) for e in entries)
    cells: dict[tuple[str, str], str] = {}
    for e in entries:
        place = (e.label(rows), e.label(columns))
        if place in cells:
            raise MarkerError(
                f"several rows for {rows} {place[0]!r}, {columns} {place[1]!r}: "
                "narrow cases=, implementations= or metrics="
            )
        cells[place] = e.cell(cell)
    lines = [[name] + [cells.get((name, other), NONE) for other in across] for name in down]
    title = f"{rows} ({_header(cell, entries)})"
    return _table([title, *across], [False] + [True] * len(across), lines) + _reasons(entries)


def caption(record: Record, link: str) -> str:
    """Return machine, date, commit, versions and command, in one small line."""
    torch, cuda = record.versions.get("torch"), record.versions.get("cuda")
    parts = [
        record.processor,
        record.created[:10],
        f"commit {record.commit}" + (" with uncommitted changes" if record.dirty else ""),
        *([f"torch {torch}"] if torch else []),
        *([f"CUDA {cuda}"] if cuda and record.machine["device"] == "cuda" else []),
        f"`{record.command}`",
        f"[record]({link})",
    ]
    return f"<sub>{' · '.join(parts)}</sub>"


def _header(column: str, entries: list[Entry]) -> str:
    if column == "ratio":
        baselines = unique(e.case.baseline for e in entries)
        return f"vs {baselines[0]}" if len(baselines) == 1 else "vs baseline"
    return NAMES.get(column, column.replace(AGAINST, "vs ", 1))


def _is_field(column: str) -> bool:
    return column in FIELDS or column.startswith(AGAINST)


def _is_number(column: str) -> bool:
    return column in NUMBERS or column.startswith(AGAINST)


def _table(headers: list[str], right: list[bool], lines: list[list[str]]) -> str:
    rule = ["---:" if each else "---" for each in right]
    cells = [[cell.replace("|", "\\|") for cell in each] for each in (headers, *lines)]
    return "\n".join("| " + " | ".join(each) + " |" for each in (cells[0], rule, *cells[1:]))


def _reasons(entries: list[Entry]) -> str:
    """Return a line for each row that was not measured; the same reason is given once."""
    reasons = unique(
        f"{e.row.implementation}: {e.row.status}, {e.row.reason}"
        for e in entries
        if e.row.status != "ok"
    )
    return "".join(f"\n\n<sub>{reason}</sub>" for reason in reasons)
