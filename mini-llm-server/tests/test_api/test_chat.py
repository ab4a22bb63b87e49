"""Conversations: the template is applied, and the format is the chat's."""

from __future__ import annotations

from typing import Any

import pytest
from mini_llm_server.model.loader import LoadedModel

CHAT = "/v1/chat/completions"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Grüße 🙂"},
]


def chat(live: Any, **body: Any) -> dict[str, Any]:
    response = live.post(CHAT, temperature=0, **{"messages": TALK, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_answers_what_the_template_asks(live: Any, dummy: LoadedModel) -> None:
    answer = chat(live, max_tokens=20)
    ids = dummy.tokenizer.apply_chat_template(TALK)
    text = live.complete(ids, max_tokens=20)["choices"][0]["text"]
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_a_stream_starts_with_the_role_and_ends_with_the_reason(live: Any) -> None:
    text = chat(live, max_tokens=30)["choices"][0]["message"]["content"]
    stream = live.stream(
        CHAT, messages=TALK, temperature=0, max_tokens=30, stream_options={"include_usage": True}
    )
    *pieces, last = stream.chunks
    assert {chunk["object"] for chunk in stream.chunks} == {"chat.completion.chunk"}
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all(delta.keys() <= {"content"} for delta in deltas[1:])
    assert stream.text() == text
    reasons = [piece["choices"][0]["finish_reason"] for piece in pieces]
    assert reasons == [None] * (len(pieces) - 1) + ["length"]
    assert last["usage"]["completion_tokens"] == 30


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "developer", "content": "Be brief."}, *TALK[1:]],
        [{"role": "system", "content": [{"type": "text", "text": "Be "},
                                        {"type": "text", "text": "brief."}]}, *TALK[1:]],
        [{**each, "name": None, "tool_calls": None, "refusal": None} for each in TALK],
    ],
    ids=["developer is system", "text parts are joined", "null fields are absent"],
)  # fmt: skip
def test_other_spellings_of_the_same_conversation(live: Any, messages: Any) -> None:
    assert (
        chat(live, messages=messages, max_tokens=9)["choices"]
        == chat(live, max_tokens=9)["choices"]
    )


@pytest.mark.parametrize(
    "limit",
    [
        {"max_tokens": 7},
        {"max_completion_tokens": 7},
        {"max_tokens": 7, "max_completion_tokens": 7},
        {"max_tokens": None, "max_completion_tokens": 7},
    ],
)
def test_both_names_of_the_limit(live: Any, limit: Any) -> None:
    assert chat(live, **limit)["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("config", [{"max_model_len": 96}, {"num_blocks": 6, "block_size": 16}])
def test_without_a_limit_the_answer_may_take_all_the_room(start: Any, config: Any) -> None:
    with start(**config) as live:
        room = 96 if "max_model_len" in config else 97  # the last token needs no place in the cache
        usage = chat(live, ignore_eos=True)["usage"]
        assert usage["total_tokens"] == room
        assert usage["completion_tokens"] == room - usage["prompt_tokens"]
        live.wait_until_idle()


def test_what_asks_for_nothing_is_accepted(live: Any) -> None:
    nothing = {
        "n": 1, "logprobs": False, "top_logprobs": None, "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "modalities": ["text"], "store": False,
        "service_tier": "auto", "parallel_tool_calls": True, "metadata": {}, "logit_bias": None,
        "frequency_penalty": 0, "presence_penalty": 0.0, "user": "someone", "audio": None,
    }  # fmt: skip
    assert chat(live, max_tokens=5, **nothing)["choices"] == chat(live, max_tokens=5)["choices"]
