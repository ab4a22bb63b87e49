"""Answers over HTTP are the engine's own, whole and streamed."""

from __future__ import annotations

from typing import Any

import pytest
from mini_llm_server.engine.engine import Engine
from mini_llm_server.engine.request import SamplingParams
from mini_llm_server.model.loader import LoadedModel

PROMPTS = ["The capital of France is", "grüße 🙂", "a", "x" * 100]


@pytest.fixture(scope="module")
def alone(dummy: LoadedModel) -> Any:
    """Greedy answer of an engine that has nothing else to do, without HTTP."""

    def alone(ids: list[int], max_tokens: int) -> str:
        engine = Engine(dummy)
        engine.add("r", ids, SamplingParams(max_tokens=max_tokens, temperature=0))
        text = ""
        while engine.has_work():
            text += "".join(output.text for output in engine.step())
        return text

    return alone


@pytest.mark.parametrize("prompt", PROMPTS)
def test_gives_the_engine_s_answer(live: Any, alone: Any, prompt: str) -> None:
    answer = live.complete(prompt, max_tokens=24)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "dummy"
    (choice,) = answer["choices"]
    assert choice == {
        "index": 0,
        "text": alone(list(prompt.encode()), 24),
        "logprobs": None,
        "finish_reason": "length",
    }
    length = len(prompt.encode())
    assert answer["usage"] == {
        "prompt_tokens": length,
        "completion_tokens": 24,
        "total_tokens": length + 24,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_several_prompts_are_answered_in_their_order(live: Any) -> None:
    answer = live.complete(PROMPTS, max_tokens=12)
    singles = [live.complete(prompt, max_tokens=12) for prompt in PROMPTS]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [single["choices"][0]["text"] for single in singles]
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert answer["usage"][key] == sum(single["usage"][key] for single in singles)


def test_token_ids_are_taken_as_they_are(live: Any) -> None:
    ids = [list(prompt.encode()) for prompt in PROMPTS]
    texts = live.complete(PROMPTS, max_tokens=8)["choices"]
    assert live.complete(ids, max_tokens=8)["choices"] == texts
    assert live.complete(ids[1], max_tokens=8)["choices"][0]["text"] == texts[1]["text"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_is_the_same_text(live: Any, prompt: str) -> None:
    whole = live.complete(prompt, max_tokens=40)
    stream = live.stream("/v1/completions", prompt=prompt, temperature=0, max_tokens=40)
    assert stream.text() == whole["choices"][0]["text"]
    assert len({chunk["id"] for chunk in stream.chunks}) == 1
    assert {chunk["object"] for chunk in stream.chunks} == {"text_completion"}
    assert not any("usage" in chunk for chunk in stream.chunks)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in stream.chunks]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}
    assert len(stream.chunks) > 10  # it came in pieces


def test_usage_ends_a_stream_that_asks_for_it(live: Any) -> None:
    stream = live.stream(
        "/v1/completions", prompt="abc", max_tokens=5, stream_options={"include_usage": True}
    )
    *pieces, last = stream.chunks
    assert all(piece["usage"] is None for piece in pieces)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip


def test_a_stream_of_several_prompts_tells_them_apart(live: Any) -> None:
    whole = live.complete(PROMPTS, max_tokens=20)["choices"]
    stream = live.stream("/v1/completions", prompt=PROMPTS, temperature=0, max_tokens=20)
    assert [stream.text(i) for i in range(4)] == [choice["text"] for choice in whole]
    order = [chunk["choices"][0]["index"] for chunk in stream.chunks]
    assert order != sorted(order)  # they ran at the same time


def test_a_stop_string_ends_the_text_before_it(live: Any) -> None:
    text = live.complete("stop", max_tokens=40)["choices"][0]["text"]
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop)]
    assert len(stop) == 3
    assert expected
    for body in ({"stop": stop}, {"stop": ["never in it", stop]}):
        (choice,) = live.complete("stop", max_tokens=40, **body)["choices"]
        assert choice["text"] == expected
        assert choice["finish_reason"] == "stop"
        stream = live.stream("/v1/completions", prompt="stop", temperature=0, max_tokens=40, **body)
        assert stream.text() == expected
        assert stream.chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_seed_repeats_a_draw_and_others_differ(live: Any) -> None:
    def draw(seed: int | None) -> str:
        response = live.post("/v1/completions", prompt="dice", max_tokens=30, seed=seed)
        return str(response.json()["choices"][0]["text"])

    assert draw(7) == draw(7)
    assert len({draw(7), draw(8), draw(None), draw(None)}) == 4


def test_top_k_1_is_greedy_at_any_temperature(live: Any) -> None:
    greedy = live.complete("k", max_tokens=20)["choices"][0]["text"]
    drawn = live.post("/v1/completions", prompt="k", max_tokens=20, temperature=2.0, top_k=1)
    assert drawn.json()["choices"][0]["text"] == greedy


def test_16_tokens_are_the_default(live: Any) -> None:
    assert live.complete("a")["usage"]["completion_tokens"] == 16


def test_null_and_what_asks_for_nothing_are_accepted(live: Any) -> None:
    plain = live.complete("same", max_tokens=5)
    nothing = {
        "n": 1, "best_of": 1, "echo": False, "logprobs": None, "suffix": "", "logit_bias": {},
        "frequency_penalty": 0.0, "presence_penalty": 0, "stop": None, "seed": None, "user": None,
        "stream": None, "stream_options": None, "top_p": None,
    }  # fmt: skip
    assert live.complete("same", max_tokens=5, **nothing)["choices"] == plain["choices"]
