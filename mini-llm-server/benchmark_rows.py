"""Turns a load's rounds into the record's rows, and refuses what is fast because it is wrong."""

from collections.abc import Sequence
from typing import Any

import httpx
from mini_llm_server.bench.load import Result
from mini_llm_server.bench.summary import percentiles

import infra_bench

# Largest error of the answers: 1 - the mean share of an answer's text that is the same as FIFO's
# from its start on. A batch multiplies in another order than one request alone, so two tokens that
# are almost equally likely can change places, rarely in float32, often in bfloat16; from there on
# the texts differ. Answers that are wrong share next to nothing.
TOLERANCE = {"float32": 0.1, "bfloat16": 0.6, "float16": 0.3}


def shared_share(text: str, reference: str) -> float:
    """Return how much of a text is the same as the reference's from the start on, 0 to 1."""
    longest = max(len(text), len(reference))
    pairs = zip(text, reference, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(reference)))
    return same / longest if longest else 1.0


def error_of(texts: Sequence[str], reference: Sequence[str]) -> float:
    """Return the mean share of the answers that differs from the reference's."""
    pairs = list(zip(texts, reference, strict=True))
    return 1 - sum(shared_share(*pair) for pair in pairs) / len(pairs)


def rows_of(
    name: str,
    rounds: Sequence[Result],
    reference: Sequence[str],
    tolerance: float,
    *,
    ours: bool = True,
) -> list[infra_bench.Row]:
    """Return one server's metrics, a sample a round; ours is refused if its answers are not FIFO's.

    A peer may run another model or other weights, so its answers are not judged.
    """
    texts = [answer.text for result in rounds for answer in result.answered]
    error = error_of(texts, list(reference) * len(rounds)) if ours else None
    wrong = error is not None and not error <= tolerance
    why = f"its answers differ from FIFO's by {error:.2g}, more than {tolerance:g}" if wrong else ""

    def row(metric: str, unit: str, samples: list[float], better: Any = "lower") -> infra_bench.Row:
        status = "refused" if wrong else "ok"
        own = error if metric == "output tokens" else None
        return infra_bench.Row(
            name, metric, unit, samples, better=better, error=own, status=status, reason=why,
            ours=ours,
        )  # fmt: skip

    rows = [row("output tokens", "tok/s", [result.rate for result in rounds], "higher")]
    found = [percentiles(result) for result in rounds]
    for metric in found[0]:
        rows.append(row(metric, "s", [each[metric] for each in found]))
    if ours:
        equal = sum(a == b for a, b in zip(texts, [*reference] * len(rounds), strict=True))
        rows.append(row("answers equal to FIFO's", "%", [100 * equal / len(texts)], "higher"))
    return rows


class ServerClock:
    """What one of our servers' /metrics say of the time from now on."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/metrics"
        self._before = self._read()

    def rows(self, name: str) -> list[infra_bench.Row]:
        """Return the event loop's lag, and the share of a step that is not model or sampler."""
        now = self._read()
        since = {key: value - self._before.get(key, 0.0) for key, value in now.items()}
        share = since["mini_llm_scheduling_seconds_total"] / since["mini_llm_step_seconds_total"]
        return [
            infra_bench.Row(name, "event loop lag p99", "s", [_lag_p99(since)], better="lower"),
            infra_bench.Row(name, "scheduling share", "%", [100 * share], better="lower"),
        ]

    def _read(self) -> dict[str, float]:
        text = httpx.get(self._url, trust_env=False).text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}


def _lag_p99(since: dict[str, float]) -> float:
    """Return the upper bound of the bucket that holds the 99th percentile."""
    prefix = 'mini_llm_event_loop_lag_seconds_bucket{le="'
    buckets = sorted(
        (float(name.removeprefix(prefix).removesuffix('"}')), count)
        for name, count in since.items()
        if name.startswith(prefix)
    )
    return next(bound for bound, count in buckets if count >= 0.99 * buckets[-1][1])
