"""Medians, quartiles and ratios, all derived from the samples that a record keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .case import Better


@dataclass(frozen=True)
class Summary:
    """Quartiles of samples; in a ratio, quartiles of the ratios of paired rounds."""

    median: float
    q1: float
    q3: float


def summarize(samples: Sequence[float]) -> Summary:
    """Return median and quartiles (linear interpolation); ValueError when there is no sample."""
    if not samples:
        raise ValueError("no samples: statistics need at least one")
    q1, median, q3 = (float(q) for q in np.quantile(np.asarray(samples, float), [0.25, 0.5, 0.75]))
    return Summary(median, q1, q3)


def ratio(own: Sequence[float], baseline: Sequence[float], better: Better) -> Summary | None:
    """Return how many times better than the baseline: above 1 is better, whatever the metric.

    The ratio is that of the medians, so that a reader who divides two cells gets the third. Its
    quartiles come from the ratios of rounds that ran side by side, which drift (clocks, a busy
    neighbour) hits alike. None where a sample is not positive: such a ratio says nothing.
    """
    if not own or not baseline or min(*own, *baseline, 1.0) <= 0:
        return None

    def compare(mine: float, theirs: float) -> float:
        return theirs / mine if better == "lower" else mine / theirs

    paired = summarize([compare(a, b) for a, b in zip(own, baseline, strict=False)])
    return Summary(compare(summarize(own).median, summarize(baseline).median), paired.q1, paired.q3)
