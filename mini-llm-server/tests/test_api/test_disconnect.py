"""A client that leaves ends its request, wherever that is, and every block comes back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

LONG = 2000  # tokens: seconds of work, which leaving has to cut short


def check_work_was_cut_short(live: Any, requests: int = 1) -> None:
    before = live.stats()
    after = live.wait_until_idle(5)
    assert after.blocks_free + after.blocks_cached == after.blocks_total
    assert after.output_tokens - before.output_tokens < LONG * requests / 2


def close(connection: socket.socket) -> None:
    connection.close()


def reset(connection: socket.socket) -> None:
    """Close with a reset instead of a goodbye, as a killed client's kernel may."""
    linger_for_no_time = b"\x01\x00\x00\x00\x00\x00\x00\x00"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_no_time)
    connection.close()


@pytest.mark.parametrize("leave", [close, reset])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": ["a", "b", "c"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
    ids=["completion", "three prompts", "chat"],
)
def test_leaving_while_it_runs(
    live: Any, path: str, body: Any, stream: bool, leave: Callable[[socket.socket], None]
) -> None:
    connection = live.send(path, **body, stream=stream, max_tokens=LONG - 40, ignore_eos=True)
    begin = live.stats().output_tokens
    live.wait_until(lambda s: s.running and s.blocks_used and s.output_tokens > begin)
    if stream:
        assert b"200 OK" in connection.recv(4096)
    leave(connection)
    check_work_was_cut_short(live, requests=3)


def test_leaving_while_it_waits_in_the_queue(start: Any) -> None:
    with start(scheduler="fifo") as live:
        first = live.send("/v1/completions", prompt="a", max_tokens=LONG, ignore_eos=True)
        live.wait_until(lambda s: s.running == 1)
        second = live.send("/v1/completions", prompt="b", max_tokens=LONG, ignore_eos=True)
        live.wait_until(lambda s: s.waiting == 1)
        second.close()
        live.wait_until(lambda s: s.waiting == 0, 5)
        assert live.stats().running == 1  # the other one goes on
        first.close()
        check_work_was_cut_short(live)


def test_leaving_does_not_disturb_others(live: Any) -> None:
    expected = live.complete("stay", max_tokens=200)["choices"]
    leavers = [
        live.send(
            "/v1/completions",
            prompt=f"leave {i}",
            max_tokens=LONG - 40,
            stream=i % 2 == 0,
            ignore_eos=True,  # else one may end by itself before the last has begun
        )
        for i in range(10)
    ]
    live.wait_until(lambda s: s.running == 10)

    async def stay() -> httpx.Response:
        body = {"model": "dummy", "prompt": "stay", "max_tokens": 200, "temperature": 0}
        async with httpx.AsyncClient(base_url=live.url, timeout=30) as client:
            answer = asyncio.ensure_future(client.post("/v1/completions", json=body))
            await asyncio.sleep(0.05)
            for connection in leavers:
                connection.close()
            return await answer

    assert asyncio.run(stay()).json()["choices"] == expected
    live.wait_until_idle(5)


def test_a_client_that_does_not_read_holds_nobody_up(live: Any) -> None:
    sleeper = live.send(
        "/v1/completions", prompt="a", max_tokens=1000, stream=True, ignore_eos=True
    )
    for _ in range(3):
        live.complete("b", max_tokens=20)
    live.wait_until_idle()  # its tokens wait in its socket and its queue, not in the engine
    sleeper.close()


def test_leaving_in_the_middle_of_the_body(live: Any) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n" + b'{"model": '
        )
    assert httpx.get(live.url + "/health").status_code == 200
