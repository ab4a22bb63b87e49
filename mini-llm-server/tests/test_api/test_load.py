"""Many at once: everyone gets an answer or a refusal, and nothing leaks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
from mini_llm_server.engine.request import SamplingParams
from mini_llm_server.model.loader import LoadedModel


async def send_all(live: Any, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=live.url, timeout=60, limits=limits) as client:
        posts = (client.post("/v1/completions", json={"model": "dummy", **b}) for b in bodies)
        return await asyncio.gather(*posts)


def numbered(count: int, **body: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"number {i}", "temperature": 0, **body} for i in range(count)]


def test_300_at_once_are_all_answered_right(start: Any) -> None:
    with start(max_waiting=300) as live:
        bodies = numbered(300, max_tokens=12, ignore_eos=True)
        responses = asyncio.run(send_all(live, bodies))
        assert {response.status_code for response in responses} == {200}
        for i in (0, 17, 150, 299):
            alone = live.complete(bodies[i]["prompt"], max_tokens=12, ignore_eos=True)["choices"]
            assert responses[i].json()["choices"] == alone
        stats = live.wait_until_idle()
        assert stats.output_tokens == 304 * 12


def test_a_full_queue_says_when_to_come_back(start: Any) -> None:
    with start(max_waiting=20, max_num_seqs=4) as live:
        responses = asyncio.run(send_all(live, numbered(150, max_tokens=30, ignore_eos=True)))
        refused = [response for response in responses if response.status_code == 429]
        served = [response for response in responses if response.status_code == 200]
        assert len(refused) + len(served) == 150
        assert len(served) >= 20
        assert len(refused) > 20
        for response in refused:
            assert int(response.headers["retry-after"]) >= 1
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            assert "20" in error["message"]
        assert live.wait_until_idle().output_tokens == len(served) * 30
        assert live.complete("after", max_tokens=3)


def test_requests_that_preempt_each_other_are_answered_right(start: Any) -> None:
    """20 requests of 7 blocks want 140, and there are 24."""
    with start(num_blocks=24) as live:
        bodies = numbered(20, max_tokens=100, ignore_eos=True)
        responses = asyncio.run(send_all(live, bodies))
        assert live.wait_until_idle().preemptions > 0
        for body, response in zip(bodies, responses, strict=True):
            alone = live.complete(body["prompt"], max_tokens=100, ignore_eos=True)
            assert response.json()["choices"] == alone["choices"]


def test_health_answers_while_the_engine_is_busy(live: Any) -> None:
    async def run() -> float:
        async with httpx.AsyncClient(base_url=live.url, timeout=30) as client:
            work = asyncio.ensure_future(
                send_all(live, numbered(30, max_tokens=100, ignore_eos=True))
            )
            slowest = 0.0
            while not work.done():
                begin = time.perf_counter()
                assert (await client.get("/health")).status_code == 200
                slowest = max(slowest, time.perf_counter() - begin)
                await asyncio.sleep(0.01)
            assert {response.status_code for response in await work} == {200}
            return slowest

    assert asyncio.run(run()) < 2.0  # a wait for the engine would be as long as its work


def test_fifo_gives_the_same_answers(start: Any, dummy: LoadedModel) -> None:
    bodies = numbered(12, max_tokens=20)
    answers = []
    for scheduler in ("continuous", "fifo"):
        with start(scheduler=scheduler) as live:
            responses = asyncio.run(send_all(live, bodies))
            answers.append([response.json()["choices"] for response in responses])
            assert httpx.get(live.url + "/health").json()["scheduler"] == scheduler
    assert answers[0] == answers[1]


def test_who_got_a_place_in_the_queue_keeps_it(start: Any, monkeypatch: Any) -> None:
    """Requests that are preempted return to the queue, which is then longer than clients may
    make it: who was let in a moment before must not be sent away by that.
    """
    with start(max_waiting=2) as live:
        add = live.engine.add

        def others_come_back_first(*arguments: Any, **options: Any) -> None:
            for i in range(2):
                add(f"preempted-{i}", [1, 2], SamplingParams(max_tokens=1), has_place=True)
            add(*arguments, **options)

        monkeypatch.setattr(live.engine, "add", others_come_back_first)
        assert live.post("/v1/completions", prompt="a", max_tokens=2).status_code == 200
