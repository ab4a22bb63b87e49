"""Percentiles of a round."""

from __future__ import annotations

from collections.abc import Sequence

from mini_llm_server.bench.load import Result


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile: always one of the values."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def percentiles(result: Result) -> dict[str, float]:
    """Return a round's times in seconds under the names that tables show them with.

    TTFT is time to first token, ITL the time between one piece of an answer and its next, latency
    the time of a whole answer; of a round without answers, or without second pieces, none.
    """
    answers = result.answered
    found = {}
    for name, values in (
        ("TTFT", [answer.ttft for answer in answers]),
        ("ITL", [gap for answer in answers for gap in answer.gaps]),
        ("latency", [answer.latency for answer in answers]),
    ):
        for percent in (50, 99):
            if values:
                found[f"{name} p{percent}"] = percentile(values, percent)
    return found
