"""Which rows of a record a table, figure or plot shows, and what stands in each of its cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from . import format
from .record import CaseRecord, Measurement, Record

MOST_NAMED = 8
NUMBERS = ("median", "quartiles", "min", "rate", "share", "ratio", "spread", "error", "samples")
FIELDS = (*NUMBERS, "status")
AGAINST = "vs:"  # "vs:NAME" is a column, too: how many times better than the implementation NAME
NONE = "–"


class MarkerError(ValueError):
    """A marker asks for something that its record does not hold: the message says what there is."""


@dataclass(frozen=True)
class Entry:
    """One row of a record with its case."""

    case: CaseRecord
    row: Measurement

    def label(self, dimension: str) -> str:
        """Return what the entry is along "case", "implementation", "metric" or a case's param."""
        if dimension == "case":
            return self.case.name
        if dimension == "implementation":
            return self.row.implementation
        if dimension == "metric":
            return self.row.metric
        if dimension in self.case.params:
            return str(self.case.params[dimension])
        raise MarkerError(
            f"case {self.case.name!r} has no {dimension!r}; there are case, implementation, metric "
            f"and the params {sorted(self.case.params)}"
        )

    def number(self, field: str) -> float | None:
        """Return a field as a number, or None where the row has none."""
        if field == "share":
            return self.row.rate / self.case.peak if self.row.rate and self.case.peak else None
        names = {"median": "median", "min": "minimum", "rate": "rate"}
        names |= {"ratio": "ratio", "error": "error"}
        if field not in names:
            known = sorted([*names, "share"])
            raise MarkerError(f"{field!r} is no number to show; use one of {known}")
        value: float | None = getattr(self.row, names[field])
        return value

    def cell(self, field: str) -> str:
        """Return a field as text; its status where a row was not measured."""
        if field.startswith(AGAINST):
            return self._against(field.removeprefix(AGAINST))
        if field not in FIELDS:
            raise MarkerError(f"no field {field!r}; use one of {', '.join(FIELDS)}")
        row = self.row
        if field == "status":
            return row.status
        if row.status != "ok":
            return row.status if field in ("median", "rate", "ratio") else NONE
        if field == "samples":
            return str(len(row.samples))
        if field == "quartiles":
            low, high = row.q1 or 0.0, row.q3 or 0.0
            return f"{format.quantity(low, row.unit)} – {format.quantity(high, row.unit)}"
        if field == "spread":
            return spread(row) or NONE
        value = self.number(field)
        if value is None:
            return NONE
        if field == "rate":
            return format.rate(value, self.case.rate_unit)
        if field == "ratio":
            return format.times(value)
        if field == "share":
            return f"{value:.1%}"
        return format.error(value) if field == "error" else format.quantity(value, row.unit)

    def _against(self, name: str) -> str:
        """Return how many times better the median is than that of another implementation."""
        same = [each for each in self.case.rows if each.metric == self.row.metric]
        other = next((each for each in same if each.implementation == name), None)
        if other is None:
            there = unique(each.implementation for each in same)
            raise MarkerError(f"case {self.case.name!r} has no {name!r} to compare with: {there}")
        own = self.row.median
        if not own or not other.median or self.row.unit != other.unit:
            return NONE
        lower = self.row.better == "lower"
        return format.times(other.median / own if lower else own / other.median)


def spread(row: Measurement) -> str:
    """Return the quartiles of a ratio as text; empty where there is none."""
    if row.ratio_q1 is None or row.ratio_q3 is None:
        return ""
    return f"{format.times(row.ratio_q1)} – {format.times(row.ratio_q3)}"


def choose(
    record: Record, cases: str = "*", implementations: str = "*", metrics: str = "*"
) -> list[Entry]:
    """Return the rows that match, in the record's order; MarkerError where none does.

    Each pattern is one or more globs, separated by `|`.
    """
    entries = [Entry(case, row) for case in record.cases for row in case.rows]
    for dimension, pattern in (
        ("case", cases),
        ("implementation", implementations),
        ("metric", metrics),
    ):
        there = unique(entry.label(dimension) for entry in entries)
        for glob in pattern.split("|"):
            if not any(_matches(name, glob) for name in there):
                raise MarkerError(f"no {dimension} matches {glob!r}; {_nearest(glob, there)}")
        entries = [
            entry
            for entry in entries
            if any(_matches(entry.label(dimension), glob) for glob in pattern.split("|"))
        ]
    return entries


def _nearest(glob: str, there: list[str]) -> str:
    """Say what there is: all of it, or of many names those that are most like the pattern."""
    if len(there) <= MOST_NAMED:
        return f"there are {there}"
    near = get_close_matches(glob.replace("*", ""), there, MOST_NAMED, cutoff=0.0)
    return f"of {len(there)}, the most alike are {near}"


def unique(names: Iterable[str]) -> list[str]:
    """Return the names without repetition, in the order of their first appearance."""
    return list(dict.fromkeys(names))


def _matches(name: str, glob: str) -> bool:
    return name == glob or fnmatchcase(name, glob)
