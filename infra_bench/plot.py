"""Plots of a record as SVG: the same data gives the same file, whoever draws it."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ._need import need
from .format import RATE_STEPS, TIME_STEPS, digits
from .selection import Entry, MarkerError, unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE = 1  # raise it when the drawing changes, so that every plot counts as out of date
# Okabe and Ito's colours, told apart by colour-blind readers too; its yellow is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
INTENSITY = "FLOP per byte moved"
DIGEST = "infra_bench data sha256:"


@dataclass(frozen=True)
class Series:
    """One implementation's points: value and quartiles at each x; None where it has no value."""

    name: str
    ours: bool
    values: list[float | None]
    low: list[float | None]
    high: list[float | None]


@dataclass(frozen=True)
class Plot:
    """All that is drawn; its digest is kept in the SVG."""

    kind: str
    x_label: str
    y_label: str
    x: list[str]
    series: list[Series]
    log: str
    style: int = STYLE
    roof: tuple[float, float] | None = None  # of a roofline: highest y, and its slope before that

    @property
    def digest(self) -> str:
        """Return what the SVG has to carry to be up to date."""
        data = {name: value for name, value in asdict(self).items() if value is not None}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def plan(entries: list[Entry], kind: str, x: str, field: str, log: str = "") -> Plot:
    """Choose what to draw: `field` of each implementation, over the dimension `x`.

    A roofline is the rate over the case's FLOP a byte, below what the machine can reach.
    """
    if kind not in ("bars", "lines", "roofline"):
        raise MarkerError(f"kind is {kind!r}; use bars, lines or roofline")
    if log not in ("", "x", "y", "xy"):
        raise MarkerError(f"log is {log!r}; use x, y or xy")
    if kind == "roofline":
        x, field, log = INTENSITY, "rate", "xy"
    scale, unit = _unit(entries, field)
    roof = _roof(entries, scale) if kind == "roofline" else None
    places = unique(_place(e, x) for e in entries)
    if kind != "bars":
        places.sort(key=lambda place: _as_number(place, x))
    names = [""] if x == "implementation" else unique(e.row.implementation for e in entries)
    series = []
    for name in names:
        own = [e for e in entries if name in ("", e.row.implementation)]
        at: dict[str, Entry] = {}
        for e in own:
            if _place(e, x) in at:
                raise MarkerError(
                    f"several rows of {e.row.implementation!r} at {x} {_place(e, x)!r}: "
                    "narrow cases=, implementations= or metrics="
                )
            at[_place(e, x)] = e
        points = [_point(at.get(place), field, scale) for place in places]
        values, low, high = (list(each) for each in zip(*points, strict=True))
        series.append(Series(name, any(e.row.ours for e in own), values, low, high))
    return Plot(kind, x, unit, places, series, log, roof=roof)


def digest_of(svg: str) -> str:
    """Return the digest that an SVG carries, or nothing."""
    found = re.search(re.escape(DIGEST) + r"([0-9a-f]{64})", svg)
    return found.group(1) if found else ""


def draw(plot: Plot) -> str:
    """Return the plot as SVG text."""
    need("matplotlib")
    import matplotlib

    settings: Any = {
        "svg.hashsalt": "infra_bench",
        "svg.fonttype": "path",  # the reader's browser has other fonts
        "font.family": "DejaVu Sans",  # comes with matplotlib, so that it is the same everywhere
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        # White, and not transparent: black labels have to be readable on a dark page.
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
    }
    with matplotlib.rc_context(settings):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        {"bars": _bars, "lines": _lines, "roofline": _roofline}[plot.kind](axes, plot)
        if "y" in plot.log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        if len(plot.series) > 1 or plot.roof:
            figure.legend(loc="outside right upper", frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.M)
    return svg.replace("<svg ", f"<!-- {DIGEST}{plot.digest} -->\n<svg ", 1)


def _bars(axes: Axes, plot: Plot) -> None:
    width = 0.8 / len(plot.series)
    for number, series in enumerate(plot.series):
        shift = (number - (len(plot.series) - 1) / 2) * width
        there = [i for i, value in enumerate(series.values) if value is not None]
        axes.bar(
            [i + shift for i in there],
            [series.values[i] or 0.0 for i in there],
            width * 0.92,
            yerr=_spread(series, there),
            label=series.name,
            error_kw={"elinewidth": 1, "capsize": 2},
            **_look(number, series),
        )
    crowded = sum(map(len, plot.x)) > 60
    axes.set_xticks(range(len(plot.x)), plot.x, rotation=20 if crowded else 0)


def _lines(axes: Axes, plot: Plot) -> None:
    x = [float(place) for place in plot.x]
    for number, series in enumerate(plot.series):
        there = [i for i, value in enumerate(series.values) if value is not None]
        axes.errorbar(
            [x[i] for i in there],
            [series.values[i] or 0.0 for i in there],
            yerr=_spread(series, there),
            label=series.name,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            capsize=2,
            linestyle="-" if series.ours else "--",
            color=_look(number, series)["color"],
        )
    if "x" in plot.log:
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, plot.x)
        axes.minorticks_off()


def _roofline(axes: Axes, plot: Plot) -> None:
    assert plot.roof is not None
    peak, slope = plot.roof
    intensities = [float(place) for place in plot.x]
    ends = [min(*intensities, peak / slope) / 2, peak / slope, max(*intensities, peak / slope) * 2]
    traffic = plot.y_label.replace("FLOP/s", "B/s")
    label = f"limits: {digits(peak)} {plot.y_label},\n{digits(slope)} {traffic}"
    axes.plot(ends, [min(peak, slope * x) for x in ends], color="#888888", label=label)
    for number, series in enumerate(plot.series):
        there = [i for i, value in enumerate(series.values) if value is not None]
        axes.plot(
            [intensities[i] for i in there],
            [series.values[i] or 0.0 for i in there],
            linestyle="",
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            fillstyle="full" if series.ours else "none",
            color=_look(number, series)["color"],
            label=series.name,
        )
    axes.set_xscale("log")


def _look(number: int, series: Series) -> dict[str, Any]:
    colour = COLOURS[number % len(COLOURS)]
    # A peer is hatched (or dashed): told from ours without a colour.
    return {"color": colour} if series.ours else {"color": colour, "hatch": "//", "edgecolor": "w"}


def _spread(series: Series, there: list[int]) -> list[list[float]]:
    """Return the distances from the values to their quartiles."""
    down, up = [], []
    for i in there:
        value = series.values[i] or 0.0
        low, high = series.low[i], series.high[i]
        down.append(max(0.0, value - low) if low is not None else 0.0)
        up.append(max(0.0, high - value) if high is not None else 0.0)
    return [down, up]


def _point(
    entry: Entry | None, field: str, scale: float
) -> tuple[float | None, float | None, float | None]:
    value = entry.number(field) if entry else None
    if entry is None or value is None:
        return None, None, None
    row = entry.row
    low, high = None, None
    if field == "median":
        low, high = row.q1, row.q3
    elif field == "ratio":
        low, high = row.ratio_q1, row.ratio_q3
    elif field == "rate" and row.q1 and row.q3 and row.median:
        low, high = value * row.median / row.q3, value * row.median / row.q1
    scaled = [None if each is None else float(f"{each / scale:.6g}") for each in (value, low, high)]
    return scaled[0], scaled[1], scaled[2]


def _place(entry: Entry, x: str) -> str:
    if x != INTENSITY:
        return entry.label(x)
    if not entry.case.flops or not entry.case.bytes:
        raise MarkerError(f"case {entry.case.name!r} counts no operations, or no bytes")
    return f"{entry.case.flops / entry.case.bytes:.6g}"


def _roof(entries: list[Entry], scale: float) -> tuple[float, float]:
    """Return the peak rate and the peak bandwidth, which all cases have to share."""
    peaks = {(e.case.peak_flops, e.case.peak_bytes) for e in entries}
    if len(peaks) != 1 or 0.0 in next(iter(peaks)):
        raise MarkerError(
            f"a roofline needs one peak_flops and one peak_bytes, not {sorted(peaks)}"
        )
    ((flops, bandwidth),) = peaks
    return float(f"{flops / scale:.6g}"), float(f"{bandwidth / scale:.6g}")


def _unit(entries: list[Entry], field: str) -> tuple[float, str]:
    """Return the one scale for all values, and the label of the y axis."""
    values = [value for e in entries if (value := e.number(field)) is not None]
    if not values:
        raise MarkerError(f"no row that was measured has a {field}")
    if field == "ratio":
        baselines = unique(e.case.baseline for e in entries)
        return 1.0, f"times {baselines[0]}" if len(baselines) == 1 else "times the baseline"
    if field == "error":
        return 1.0, "relative error"
    if field == "share":
        return 0.01, "% of the peak"
    units = unique(e.case.rate_unit if field == "rate" else e.row.unit for e in entries)
    if len(units) != 1:
        raise MarkerError(f"values in {units} cannot share an axis: narrow cases= or metrics=")
    unit = units[0]
    if field == "rate":
        least, name = next(
            (least, name) for least, name in RATE_STEPS[unit] if max(values) >= least
        )
        return least or 1.0, name
    if unit == "s":
        scale, name = next((s, name) for least, s, name in TIME_STEPS if max(values) >= least)
        return scale, name
    return 1.0, unit


def _as_number(place: str, x: str) -> float:
    try:
        return float(place)
    except ValueError:
        raise MarkerError(f"x={x} has {place!r}: lines need numbers along x; use bars") from None
