"""The engine's thread seen from asyncio: streams, cancelled and dropped clients, death."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mini_llm_server.engine.engine import Engine
from mini_llm_server.engine.engine_thread import EngineThread, OutputStream
from mini_llm_server.engine.request import (
    EngineDead,
    Output,
    QueueFull,
    RequestTooLarge,
    SamplingParams,
)

MakeEngine = Callable[..., Engine]
PARAMS = SamplingParams(6, temperature=0, ignore_eos=True)
LONG = SamplingParams(200, temperature=0, ignore_eos=True)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[EngineThread]:
    thread = EngineThread(engine)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def collect(stream: OutputStream) -> list[Output]:
    return [output async for output in stream]


def test_concurrent_streams_get_the_same_as_a_plain_engine(
    make_engine: MakeEngine, run_all: Callable[..., dict[str, list[Output]]]
) -> None:
    plain = make_engine()
    for i in range(5):
        plain.add(str(i), [i, i + 1], PARAMS)
    expected = run_all(plain)

    async def main() -> None:
        async with serving(make_engine()) as thread:
            streams = [thread.generate([i, i + 1], PARAMS, str(i)) for i in range(5)]
            answers = await asyncio.gather(*map(collect, streams))
            assert {a[0].request_id: a for a in answers} == expected
            await until(lambda: thread.stats().running == 0)
            assert thread.stats().blocks_used == 0
            assert thread.stats().output_tokens == 30

    run(main())


@pytest.mark.parametrize("way", ["aclose", "cancel", "drop", "with"])
def test_leaving_a_stream_early_aborts_it_and_frees_its_blocks(
    make_engine: MakeEngine, way: str
) -> None:
    async def main() -> None:
        async with serving(make_engine(num_blocks=64)) as thread:
            stream = thread.generate([1, 2, 3], LONG)
            await anext(stream)
            assert thread.stats().running == 1
            if way == "aclose":
                await stream.aclose()
                assert await collect(stream) == []
            elif way == "cancel":
                task = asyncio.create_task(collect(stream))
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif way == "drop":
                del stream
                gc.collect()
            else:
                async with stream:
                    pass
            await until(lambda: thread.stats().running == 0)
            assert thread.stats().blocks_used == 0
            assert thread.stats().output_tokens < 200
            assert len(await collect(thread.generate([1], PARAMS))) == 6  # and it serves on

    run(main())


def test_refusals_are_raised_at_once_and_leave_nothing(make_engine: MakeEngine) -> None:
    async def main() -> None:
        async with serving(make_engine(max_waiting=1, max_num_seqs=1)) as thread:
            with pytest.raises(RequestTooLarge):
                thread.generate([1], SamplingParams(10_000))
            with pytest.raises(ValueError, match="empty"):
                thread.generate([], PARAMS)
            running = thread.generate([1], LONG, "running")
            await anext(running)
            with pytest.raises(ValueError, match="in use"):
                thread.generate([1], PARAMS, "running")
            waiting = thread.generate([2], PARAMS, "waiting")
            with pytest.raises(QueueFull):
                thread.generate([3], PARAMS)
            await running.aclose()
            assert len(await collect(waiting)) == 6
            assert len(await collect(thread.generate([3], PARAMS))) == 6

    run(main())


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), SystemExit(3)])
def test_when_the_thread_dies_every_request_hears_of_it(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    engine = make_engine(max_num_seqs=1)
    step, steps = engine.step, iter(range(100))

    def fail_at_the_third() -> list[Output]:
        if next(steps) == 2:
            raise error
        return step()

    monkeypatch.setattr(engine, "step", fail_at_the_third)

    async def main() -> None:
        async with serving(engine) as thread:
            assert thread.healthy
            streams = [thread.generate([i], LONG) for i in range(3)]  # one runs, two wait
            for answer in await asyncio.gather(*map(collect, streams)):
                assert answer[-1].finish_reason == "error"
                assert repr(error) in answer[-1].error
            assert not thread.healthy
            with pytest.raises(EngineDead, match="died"):
                thread.generate([1], PARAMS)

    run(main())


def test_stopping_ends_what_is_unfinished(make_engine: MakeEngine) -> None:
    async def main() -> None:
        async with serving(make_engine()) as thread:
            stream = thread.generate([1], LONG)
            await anext(stream)
            thread.stop()
            assert (await collect(stream))[-1].finish_reason == "abort"
            with pytest.raises(EngineDead, match="stopped"):
                thread.generate([1], PARAMS)
            thread.stop()  # again is harmless

    run(main())


def test_it_refuses_before_it_is_started(make_engine: MakeEngine) -> None:
    async def main() -> None:
        thread = EngineThread(make_engine())
        assert not thread.healthy
        with pytest.raises(EngineDead, match="not started"):
            thread.generate([1], PARAMS)

    run(main())


def test_a_closed_event_loop_does_not_stop_the_engine(make_engine: MakeEngine) -> None:
    thread = EngineThread(make_engine())
    thread.start()
    kept: list[OutputStream] = []

    async def leave() -> None:
        kept.append(thread.generate([1], LONG))

    asyncio.run(leave())  # its loop is closed while the answer is still being made
    deadline = time.monotonic() + 20
    while thread.stats().running or not thread.stats().output_tokens:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert thread.stats().blocks_used == 0

    async def again() -> None:
        assert len(await collect(thread.generate([2], PARAMS))) == 6

    run(again())
    thread.stop()


def test_the_event_loop_is_never_blocked_by_a_step(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    step, gate, inside = engine.step, threading.Event(), threading.Event()

    def stuck() -> list[Output]:
        inside.set()
        gate.wait(20)
        return step()

    monkeypatch.setattr(engine, "step", stuck)

    async def main() -> None:
        async with serving(engine) as thread:
            first = thread.generate([1], PARAMS)
            await until(inside.is_set)
            # The model is in the middle of a step, and all of this returns nevertheless.
            second = thread.generate([2], PARAMS)
            await first.aclose()
            assert thread.stats().running == 0
            gate.set()
            assert len(await collect(second)) == 6

    run(main())
