"""GET /metrics: what a Prometheus server scrapes. No metric holds a prompt, an answer or a key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mini_llm_server.engine.config import EngineStats

PREFIX = "mini_llm_"
_TTFT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
_ITL = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
# Fine enough to read a 99th percentile from: each bound is 1.25 times the one before.
_LAG = tuple(round(0.001 * 1.25**i, 6) for i in range(32))
LAG_INTERVAL_S = 0.02


class Metrics:
    """One server's metrics, in a registry of their own.

    Args:
        stats: returns the engine's statistics as of its last step.
    """

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats))

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, about, buckets=buckets, registry=self._registry)

        self._requests = Counter(
            PREFIX + "http_requests",
            "HTTP requests that have ended, by path and status (499: the client left).",
            ["path", "status"],
            registry=self._registry,
        )
        self._finished = Counter(
            PREFIX + "answers",
            "Answers that have ended, by reason (none: the client left).",
            ["finish_reason"],
            registry=self._registry,
        )
        self._ttft = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _TTFT
        )
        self._itl = histogram(
            "inter_token_latency_seconds", "Between one token of an answer and its next.", _ITL
        )
        self._whole = histogram(
            "answer_duration_seconds", "From a request's arrival to an answer's end.", _WHOLE
        )
        self._lag = histogram(
            "event_loop_lag_seconds", "How much later than asked the event loop woke up.", _LAG
        )

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def http_request(self, path: str, status: int | None) -> None:
        """Count a request that has ended; `path` is a route's pattern, never a client's text."""
        self._requests.labels(path, status or 499).inc()

    def timer(self, arrival: float) -> AnswerTimer:
        """Return what takes the times of one answer; `arrival` is of time.perf_counter."""
        return AnswerTimer(self, arrival)

    async def watch_loop(self) -> None:
        """Measure the event loop's lag until cancelled."""
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(LAG_INTERVAL_S)
            self._lag.observe(max(0.0, time.perf_counter() - begin - LAG_INTERVAL_S))


class AnswerTimer:
    """Observes when an answer's tokens reach the event loop."""

    def __init__(self, metrics: Metrics, arrival: float) -> None:
        self._metrics = metrics
        self._arrival = arrival
        self._last: float | None = None

    def token(self) -> None:
        """Note that a token has come."""
        now = time.perf_counter()
        if self._last is None:
            self._metrics._ttft.observe(now - self._arrival)
        else:
            self._metrics._itl.observe(now - self._last)
        self._last = now

    def end(self, reason: str | None) -> None:
        """Note that the answer has ended; None: the client left."""
        self._metrics._finished.labels(reason or "none").inc()
        if reason is not None:
            self._metrics._whole.observe(time.perf_counter() - self._arrival)


class _EngineCollector(Collector):
    """Turns the engine's statistics into metrics when they are scraped, not at every step."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        stats = self._stats()
        for name, about, value in (
            ("requests_waiting", "Requests in the queue.", stats.waiting),
            ("requests_running", "Requests in the batch.", stats.running),
            ("kv_blocks", "Blocks of the KV cache.", stats.blocks_total),
            ("kv_blocks_used", "Blocks that requests hold.", stats.blocks_used),
            ("kv_blocks_cached", "Blocks kept for prompts to come.", stats.blocks_cached),
            (
                "kv_usage_ratio",
                "Share of the blocks that requests hold.",
                stats.blocks_used / stats.blocks_total,
            ),
        ):
            yield GaugeMetricFamily(PREFIX + name, about, value=value)
        for name, about, total in (
            ("steps", "Steps of the engine.", stats.steps),
            ("preemptions", "Requests that gave their blocks back for others.", stats.preemptions),
            ("prompt_tokens", "Prompt tokens whose request got its first token.",
             stats.prompt_tokens),
            ("output_tokens", "Sampled tokens.", stats.output_tokens),
            ("prefix_query_tokens", "Prompt tokens looked for in the prefix cache.",
             stats.prefix_query_tokens),
            ("prefix_hit_tokens", "Prompt tokens found there.", stats.prefix_hit_tokens),
            ("step_seconds", "Time in steps.", stats.step_seconds),
            ("scheduling_seconds", "Part of it outside model and sampler.",
             stats.scheduling_seconds),
        ):  # fmt: skip
            yield CounterMetricFamily(PREFIX + name, about, value=total)
