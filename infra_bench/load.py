"""Read a record back, and refuse one that is broken, of another schema, or edited by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from .record import SCHEMA, STATUSES, CaseRecord, Measurement, Record, RecordError, derive

TEXT, NUMBER, MAYBE = (str,), (int, float), (int, float, type(None))
RECORD_FIELDS: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    "package": TEXT,
    "version": TEXT,
    "created": TEXT,
    "commit": TEXT,
    "dirty": (bool,),
    "command": TEXT,
    "machine": (dict,),
    "versions": (dict,),
    "cases": (list,),
}
MACHINE_FIELDS: dict[str, tuple[type, ...]] = {
    "slug": TEXT,
    "device": TEXT,
    "gpu": (dict, type(None)),
    "cpu": (dict,),
    "memory_gib": MAYBE,
    "busy": MAYBE,
    "os": TEXT,
}
CPU_FIELDS: dict[str, tuple[type, ...]] = {"model": TEXT, "cores": (int,), "threads": (int,)}
CASE_FIELDS: dict[str, tuple[type, ...]] = {
    "name": TEXT,
    "baseline": TEXT,
    "params": (dict,),
    "rows": (list,),
    "flops": NUMBER,
    "bytes": NUMBER,
    "peak_flops": NUMBER,
    "peak_bytes": NUMBER,
    "tolerance": MAYBE,
    "seed": (int, type(None)),
}
# What records made before these fields were added mean.
CASE_DEFAULTS = {"peak_flops": 0.0, "peak_bytes": 0.0}
DERIVED = ("median", "q1", "q3", "minimum", "ratio", "ratio_q1", "ratio_q3", "rate")
ROW_FIELDS: dict[str, tuple[type, ...]] = {
    "implementation": TEXT,
    "metric": TEXT,
    "unit": TEXT,
    "better": TEXT,
    "ours": (bool,),
    "status": TEXT,
    "reason": TEXT,
    "error": MAYBE,
    "timer": TEXT,
    "calls": (int,),
    "samples": (list,),
} | dict.fromkeys(DERIVED, MAYBE)


def load(path: Path) -> Record:
    """Return the record at `path`; RecordError names file, field and fault where it is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecordError) as fault:
        raise RecordError(f"{path}: not a JSON record: {fault}") from None
    try:
        return _record(data, path)
    except RecordError as fault:
        raise RecordError(f"{path}: {fault}") from None


def _record(data: Any, path: Path) -> Record:
    if isinstance(data, dict) and data.get("schema") != SCHEMA:
        raise RecordError(f"schema is {data.get('schema')!r}; this harness reads {SCHEMA}")
    _check(data, RECORD_FIELDS, "record")
    _check(data["machine"], MACHINE_FIELDS, "machine")
    _check(data["machine"]["cpu"], CPU_FIELDS, "machine.cpu")
    if data["machine"]["gpu"] is not None:
        gpu_fields: dict[str, tuple[type, ...]] = {"name": TEXT, "count": (int,)}
        _check(data["machine"]["gpu"], gpu_fields, "machine.gpu", more=True)
    cases = tuple(_case(each, f"cases[{i}]") for i, each in enumerate(data["cases"]))
    return Record(**{**data, "cases": cases}, path=path)


def _case(data: Any, where: str) -> CaseRecord:
    data = {**CASE_DEFAULTS, **data} if isinstance(data, dict) else data
    _check(data, CASE_FIELDS, where)
    rows = tuple(_row(each, f"{where}.rows[{i}]") for i, each in enumerate(data["rows"]))
    case = CaseRecord(**{**data, "rows": rows})
    # What can be computed from the samples has to be what the samples give.
    for number, (kept, derived) in enumerate(zip(rows, derive(case).rows, strict=True)):
        for name in DERIVED:
            stored, right = getattr(kept, name), getattr(derived, name)
            if not _close(stored, right):
                raise RecordError(
                    f"{where}.rows[{number}].{name} is {stored}, but its samples give {right}: "
                    "was it edited by hand?"
                )
    return case


def _row(data: Any, where: str) -> Measurement:
    _check(data, ROW_FIELDS, where)
    if data["status"] not in STATUSES:
        raise RecordError(f"{where}.status is {data['status']!r}; it has to be one of {STATUSES}")
    if data["better"] not in ("higher", "lower"):
        raise RecordError(f"{where}.better is {data['better']!r}; 'higher' or 'lower' is meant")
    for index, sample in enumerate(data["samples"]):
        if isinstance(sample, bool) or not isinstance(sample, (int, float)):
            raise RecordError(f"{where}.samples[{index}] is {sample!r}; a number is meant")
    if (data["status"] == "ok") != bool(data["samples"]):
        raise RecordError(
            f"{where} is {data['status']!r} with {len(data['samples'])} samples; "
            "what is ok has samples, and nothing else has"
        )
    return Measurement(**{**data, "samples": tuple(data["samples"])})


def _check(data: Any, wanted: dict[str, tuple[type, ...]], where: str, more: bool = False) -> None:
    """Raise RecordError unless `data` is an object with these fields of these types."""
    if not isinstance(data, dict):
        raise RecordError(f"{where} is {type(data).__name__}; an object is meant")
    missing = sorted(wanted.keys() - data.keys())
    unknown = [] if more else sorted(data.keys() - wanted.keys())
    if missing or unknown:
        raise RecordError(f"{where}: missing fields {missing}, unknown fields {unknown}")
    for name, types in wanted.items():
        value = data[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            meant = " or ".join(each.__name__ for each in types)
            raise RecordError(f"{where}.{name} is {value!r:.80}; {meant} is meant")


def _close(stored: float | None, right: float | None) -> bool:
    if stored is None or right is None:
        return stored is right
    return math.isclose(stored, right, rel_tol=1e-9)


def _no_constant(name: str) -> NoReturn:
    raise RecordError(f"{name} is no number")
