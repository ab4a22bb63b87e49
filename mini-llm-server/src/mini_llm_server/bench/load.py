"""Two ways to put a load on a server, and what its clients then see.

Closed loop: each of N clients sends its next request when its last answer is complete, so a slow
server is asked less. Open loop: requests come as a Poisson process at a rate, however slow the
server is, and a queue that grows shows in the times. Neither replaces the other: see "Open Versus
Closed: A Cautionary Tale" (Schroeder et al. 2006).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

import httpx

from mini_llm_server.bench.client import Answer, BenchmarkError, Job, Target, ask


@dataclass(frozen=True)
class Result:
    """One round of a load.

    Attributes:
        answers: in the jobs' order; None for a request that was not answered.
        seconds: from the first request to the last answer.
        errors: why requests were not answered.
    """

    answers: tuple[Answer | None, ...]
    seconds: float
    errors: tuple[str, ...] = ()

    @property
    def answered(self) -> list[Answer]:
        """The answers that there are."""
        return [answer for answer in self.answers if answer is not None]

    @property
    def rate(self) -> float:
        """Output tokens a second over the whole round."""
        return sum(answer.tokens for answer in self.answered) / self.seconds


async def closed_loop(target: Target, jobs: Sequence[Job], clients: int) -> Result:
    """Send all jobs, each client one after the other."""
    waiting = iter(range(len(jobs)))
    round_ = _Round(target, jobs)

    async def client_loop(client: httpx.AsyncClient) -> None:
        for i in waiting:
            await round_.send(client, i)

    async with target.client(clients) as client:
        return await round_.run([client_loop(client) for _ in range(clients)])


async def open_loop(target: Target, jobs: Sequence[Job], rate: float, seed: int = 0) -> Result:
    """Send all jobs, `rate` a second on average, at the same moments for the same seed."""
    rng = random.Random(seed)
    moments, at = [], 0.0
    for _ in jobs:
        moments.append(at)
        at += rng.expovariate(rate)
    round_ = _Round(target, jobs)

    async def send_at(client: httpx.AsyncClient, i: int) -> None:
        await asyncio.sleep(moments[i])
        await round_.send(client, i)

    async with target.client(None) as client:
        return await round_.run([send_at(client, i) for i in range(len(jobs))])


class _Round:
    """Collects what the requests of one round give."""

    def __init__(self, target: Target, jobs: Sequence[Job]) -> None:
        self._target, self._jobs = target, jobs
        self._answers: list[Answer | None] = [None] * len(jobs)
        self._errors: list[str] = []

    async def send(self, client: httpx.AsyncClient, i: int) -> None:
        """Send one job; an error is kept, and the others go on."""
        try:
            self._answers[i] = await ask(client, self._target, self._jobs[i])
        except (BenchmarkError, httpx.HTTPError) as error:
            self._errors.append(str(error) or repr(error))

    async def run(self, work: Sequence[Coroutine[None, None, None]]) -> Result:
        """Wait for all of it."""
        begin = time.perf_counter()
        await asyncio.gather(*work)
        seconds = time.perf_counter() - begin
        return Result(tuple(self._answers), seconds, tuple(self._errors))
