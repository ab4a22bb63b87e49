"""Numbers as a reader wants them: three significant digits and the unit that suits."""

from __future__ import annotations

import math

RATE_STEPS = {"FLOP/s": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"), (0, "FLOP/s"))}
RATE_STEPS["B/s"] = ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (0, "B/s"))
TIME_STEPS = ((1.0, 1.0, "s"), (1e-3, 1e-3, "ms"), (1e-6, 1e-6, "µs"), (0.0, 1e-9, "ns"))


def digits(value: float) -> str:
    """Return a number to three significant digits, whole above 100, with thousands marked."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}" if value == 0 else str(value)
    rounded = float(f"{value:.3g}") if abs(value) < 1000 else round(value)
    size = math.floor(math.log10(abs(rounded)))
    if not -4 <= size < 9:
        return f"{value:.2e}"
    return f"{rounded:,.{max(0, 2 - size)}f}"


def seconds(value: float) -> str:
    """Return a time as 1.23 ms."""
    scale, unit = next((scale, unit) for least, scale, unit in TIME_STEPS if abs(value) >= least)
    return f"{digits(value / scale)} {unit}"


def quantity(value: float, unit: str) -> str:
    """Return a value with its unit; seconds in the step that suits."""
    return seconds(value) if unit == "s" else f"{digits(value)} {unit}".rstrip()


def rate(value: float, unit: str) -> str:
    """Return FLOP/s or B/s in the step that suits: TFLOP/s from 1e12 on, GFLOP/s below."""
    least, name = next((least, name) for least, name in RATE_STEPS[unit] if value >= least)
    return f"{digits(value / (least or 1))} {name}"


def times(value: float) -> str:
    """Return a ratio as 1.23x."""
    return f"{value:.2f}x" if 0.1 <= value < 10 else f"{digits(value)}x"


def error(value: float) -> str:
    """Return an error as 1.1e-06, and an exact result as 0."""
    return "0" if value == 0 else f"{value:.1e}"
