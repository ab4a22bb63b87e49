"""Write tables, figures and plots between a README's markers, or say where they have drifted."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import markers
from .load import load
from .markdown import caption, long_table, pivot_table
from .markers import Marker
from .plot import Plot, digest_of, draw, plan
from .record import Record, RecordError
from .selection import MarkerError, choose

ABOUT_RUN: dict[str, Callable[[Record], str]] = {
    "date": lambda record: record.created[:10],
    "machine": lambda record: record.processor,
    "commit": lambda record: record.commit,
    "torch": lambda record: str(record.versions.get("torch", "")),
    "command": lambda record: f"`{record.command}`",
}
LANGUAGES = {".cu": "cuda", ".cuh": "cuda", ".cpp": "cpp", ".h": "cpp", ".py": "python"}
ROWS = {"cases": "*", "implementations": "*", "metrics": "*"}


@dataclass
class Page:
    """A README as it should be: its text, the plots beside it, and what is wrong with it."""

    path: Path
    text: str = ""
    plots: dict[Path, Plot] = field(default_factory=dict)
    drifted: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def render(path: Path) -> Page:
    """Fill a README's markers from their records; faults are collected, not raised."""
    page = Page(path)
    try:
        page.text = path.read_text(encoding="utf-8")
        found = markers.find(page.text)
    except (OSError, UnicodeDecodeError, MarkerError) as fault:
        page.faults.append(f"{path}: {fault}")
        return page
    for marker in reversed(found):  # from the end, so that positions before stay right
        where = f"{path}:{marker.line}"
        try:
            content = _content(marker, page)
        except (MarkerError, RecordError) as fault:
            page.faults.append(f"{where}: {fault}")
            continue
        if page.text[marker.start : marker.end] != content:
            page.drifted.append(
                f"{where}: bench:{marker.kind} differs from {marker.attributes['file']}"
            )
        page.text = page.text[: marker.start] + content + page.text[marker.end :]
    for each in (page.drifted, page.faults):
        each.reverse()
    for out, plot in page.plots.items():
        if not _is_drawn(out, plot):
            page.drifted.append(f"{path}: plot {_beside(out, path)} is not drawn from its record")
    return page


def write(page: Page) -> None:
    """Write the README and those of its plots whose data changed."""
    for out, plot in page.plots.items():
        # A plot of the same data stays: another matplotlib would write other bytes for nothing.
        if not _is_drawn(out, plot):
            out.parent.mkdir(parents=True, exist_ok=True)
            _replace(out, draw(plot))
    _replace(page.path, page.text)


def use(new: Path, readmes: list[Path]) -> list[str]:
    """Point the markers that show an older run of the same package and machine to `new`.

    A marker whose file is not there yet follows too, if the file is meant to lie in the same folder
    and its name does not tell of another machine: `<slug>_pending.json` takes that machine's first
    record, GPU.json a GPU's, CPU.json a CPU's, and any other name the first that comes. Returns a
    line for each marker changed.
    """
    record = load(new)
    changed = []
    for path in readmes:
        text = path.read_text(encoding="utf-8")
        for marker in reversed(markers.find(text)):
            name = marker.attributes.get("file", "")
            link = _beside(new, path)
            if marker.kind == "snippet" or name == link:
                continue
            if not _same_origin(path.parent / name, new, record):
                continue
            opening = text[marker.begin : marker.start].replace(name, link)
            text = text[: marker.begin] + opening + text[marker.start :]
            changed.append(f"{path}:{marker.line}: {name} -> {link}")
        _replace(path, text)
    return changed


def _same_origin(old: Path, new: Path, record: Record) -> bool:
    if old.is_file():
        was = load(old)
        return (was.package, was.machine["slug"]) == (record.package, record.machine["slug"])
    machine, named, _ = old.stem.partition("_")
    device = {"gpu": "cuda", "cpu": "cpu"}.get(machine.lower(), record.machine["device"])
    mine = machine == record.machine["slug"] if named else device == record.machine["device"]
    return old.parent.resolve() == new.parent.resolve() and mine


def _content(marker: Marker, page: Page) -> str:
    makers = {"table": _table, "value": _value, "plot": _plot}
    if marker.kind not in makers and marker.kind != "snippet":
        raise MarkerError(
            f"bench:{marker.kind} is unknown; there are {sorted([*makers, 'snippet'])}"
        )
    if "file" not in marker.attributes:
        raise MarkerError(f"bench:{marker.kind} names no file=")
    if marker.kind == "snippet":
        return _snippet(marker, page)
    record = load(page.path.parent / marker.attributes["file"])
    return makers[marker.kind](marker, record, page)


def _table(marker: Marker, record: Record, page: Page) -> str:
    pivot = "cell" in marker.attributes
    if pivot:
        wanted = marker.take("file", "rows", "columns", "cell", **ROWS)
    else:
        wanted = marker.take(
            "file", rows="implementation", columns="median,rate,ratio,error", **ROWS
        )
        if wanted["rows"] != "implementation":
            raise MarkerError(f"rows={wanted['rows']} needs columns= and cell= for a pivot table")
    entries = choose(record, wanted["cases"], wanted["implementations"], wanted["metrics"])
    if pivot:
        table = pivot_table(entries, wanted["rows"], wanted["columns"], wanted["cell"])
    else:
        table = long_table(entries, [name.strip() for name in wanted["columns"].split(",")])
    return f"\n\n{table}\n\n{caption(record, wanted['file'])}\n\n"


def _value(marker: Marker, record: Record, page: Page) -> str:
    wanted = marker.take("file", "field", case="*", implementation="*", metric="*")
    if wanted["field"] in ABOUT_RUN:
        return ABOUT_RUN[wanted["field"]](record)
    entries = choose(record, wanted["case"], wanted["implementation"], wanted["metric"])
    if len(entries) != 1:
        names = [(e.case.name, e.row.implementation, e.row.metric) for e in entries[:4]]
        raise MarkerError(f"{len(entries)} rows match, and one is meant: {names} ...")
    (entry,) = entries
    text = entry.cell(wanted["field"])
    if entry.row.status != "ok" and wanted["field"] != "status":
        raise MarkerError(f"{entry.row.implementation!r} is {entry.row.status}: there is no figure")
    return text


def _plot(marker: Marker, record: Record, page: Page) -> str:
    wanted = marker.take("file", "out", "kind", field="rate", x="case", log="", **ROWS)
    entries = choose(record, wanted["cases"], wanted["implementations"], wanted["metrics"])
    plot = plan(entries, wanted["kind"], wanted["x"], wanted["field"], wanted["log"])
    out = page.path.parent / wanted["out"]
    if page.plots.get(out, plot) != plot:
        raise MarkerError(f"another marker draws another plot to {wanted['out']}")
    page.plots[out] = plot
    names = ", ".join(series.name for series in plot.series if series.name)
    alt = f"{plot.y_label} by {plot.x_label}" + (f": {names}" if names else "")
    return f"\n\n![{alt}]({wanted['out']})\n\n{caption(record, wanted['file'])}\n\n"


def _snippet(marker: Marker, page: Page) -> str:
    """Return a source file's lines, from the first with `from` in it to the next with `to`."""
    wanted = marker.take("file", "from", "to")
    name = wanted["file"]
    try:
        lines = (page.path.parent / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise MarkerError(f"cannot read {name}: {fault}") from None
    first = next((n for n, line in enumerate(lines) if wanted["from"] in line), None)
    if first is None:
        raise MarkerError(f"{name} has no line with {wanted['from']!r}")
    last = next((n for n in range(first, len(lines)) if wanted["to"] in lines[n]), None)
    if last is None:
        raise MarkerError(f"{name} has no line with {wanted['to']!r} after {wanted['from']!r}")
    code = textwrap.dedent("\n".join(lines[first : last + 1]))
    language = LANGUAGES.get(Path(name).suffix, "")
    return f"\n\n```{language}\n{code}\n```\n\n<sub>[{Path(name).name}]({name})</sub>\n\n"


def _is_drawn(out: Path, plot: Plot) -> bool:
    return out.is_file() and digest_of(out.read_text(encoding="utf-8")) == plot.digest


def _beside(path: Path, readme: Path) -> str:
    return Path(os.path.relpath(path, readme.parent)).as_posix()


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
