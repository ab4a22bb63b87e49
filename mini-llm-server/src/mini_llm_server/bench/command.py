"""What `mini-llm-server bench` does: puts one load on a server and returns a table's lines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mini_llm_server.bench.client import BenchmarkError, Job, Target
from mini_llm_server.bench.load import Result, closed_loop, open_loop
from mini_llm_server.bench.server_process import server
from mini_llm_server.bench.summary import percentiles

_SENTENCE = "the river ran past an old mill where seven grey geese slept and nobody counted them"


@dataclass(frozen=True)
class Options:
    """The load: `clients` in a closed loop, or `rate` requests a second in an open one."""

    requests: int
    prompt_words: int
    output_tokens: int
    clients: int
    rate: float | None


@contextmanager
def target(url: str | None, model: str | None, api_key: str | None) -> Iterator[Target]:
    """Yield the server to ask: the one at `url`, or one that is started for as long as it lasts.

    Raises:
        BenchmarkError: it does not start, or does not say which models it has.
    """
    if url is None:
        with server("--model", model or "smollm2") as started:
            yield Target.find(started, None)
    else:
        yield Target.find(url, model, api_key)


def measure(found: Target, options: Options) -> Result:
    """Send the load, after one request that warms the server up.

    Raises:
        BenchmarkError: nothing was answered; says why.
    """
    jobs = [
        Job(_prompt(i, options.prompt_words), options.output_tokens)
        for i in range(options.requests)
    ]
    warm = asyncio.run(closed_loop(found, [Job(_prompt(-1, 8), 2)], 1))
    if warm.errors:
        raise BenchmarkError(f"{found.url}: {warm.errors[0]}")
    if options.rate is None:
        return asyncio.run(closed_loop(found, jobs, options.clients))
    return asyncio.run(open_loop(found, jobs, options.rate))


def _prompt(number: int, length: int) -> str:
    """Return a prompt that begins like no other, so that no prefix cache has seen it."""
    words = _SENTENCE.split()
    return " ".join(
        [f"Story {number}:", *(words[(number + i) % len(words)] for i in range(length))]
    )


def table(result: Result) -> list[tuple[str, str]]:
    """Return (name, value) lines of what the clients saw."""
    answers = result.answered
    lines = [
        ("requests answered", f"{len(answers)} of {len(result.answers)} in {result.seconds:.1f} s"),
        ("output tokens", f"{result.rate:.1f} tok/s"),
        ("prompt tokens", f"{sum(a.prompt_tokens for a in answers) / result.seconds:.1f} tok/s"),
    ]
    lines += [(name, f"{1000 * value:.0f} ms") for name, value in percentiles(result).items()]
    return lines
