"""SmolLM2 over HTTP: answers that make sense, and an event loop that long texts do not block."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from mini_llm_server.model.loader import load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real(serve: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
    with serve(load_model("smollm2", device="cpu"), num_blocks=600) as live:
        yield live


def test_a_chat_makes_sense(real: Any) -> None:
    def ask(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        body = {"model": "smollm2", "messages": messages, "temperature": 0, "max_tokens": 24}
        response = real.post("/v1/chat/completions", **body)
        assert response.json()["choices"][0]["finish_reason"] in ("stop", "length")
        return str(response.json()["choices"][0]["message"]["content"])

    assert "Paris" in ask("What is the capital of France?")
    assert "Tokyo" in ask("What is the capital of Japan?")


def test_it_ends_at_the_end_of_its_turn(real: Any) -> None:
    messages = [{"role": "user", "content": "Answer with one word: yes or no?"}]
    body = {"model": "smollm2", "messages": messages, "temperature": 0, "max_tokens": 200}
    choice = real.post("/v1/chat/completions", **body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "<|im_end|>" not in choice["message"]["content"]


def test_others_are_served_while_a_long_text_becomes_tokens(real: Any) -> None:
    text = "What a long, long story. " * 80_000  # 2 MB: about a second of work

    async def run() -> tuple[httpx.Response, float, float]:
        async with httpx.AsyncClient(base_url=real.url, timeout=60) as client:
            body = {"model": "smollm2", "prompt": text, "max_tokens": 1}
            begin = time.perf_counter()
            long = asyncio.ensure_future(client.post("/v1/completions", json=body))
            slowest = 0.0
            while not long.done():
                asked = time.perf_counter()
                assert (await client.get("/health")).status_code == 200
                slowest = max(slowest, time.perf_counter() - asked)
                await asyncio.sleep(0.01)
            return await long, slowest, time.perf_counter() - begin

    response, slowest, whole = asyncio.run(run())
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert slowest < max(0.3, whole / 2)
