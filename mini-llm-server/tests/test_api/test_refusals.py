"""What is not honoured is refused: with a status, in OpenAI's form, naming the field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from mini_llm_server.api.limits import MAX_BODY_BYTES
from mini_llm_server.api.openai import ChatRequest, CompletionRequest

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error object, after checking status and form."""
    assert response.status_code == status, response.text
    (key,) = response.json()
    error: dict[str, Any] = response.json()[key]
    assert key == "error"
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "end"), ("top_logprobs", 0), ("tools", []), ("max_completion_tokens", 3),
        ("no_such_field", 1), ("no_such_field", None), ("stream_options", {"include_usage": True}),
        ("best_of", 2), ("best_of", 0),
    ],
)  # fmt: skip
def test_unsupported_field_of_a_completion(live: Any, field: str, value: Any) -> None:
    body = {"prompt": "a", "max_tokens": 2, field: value}
    error = refusal(live.post(COMPLETIONS, **body), 400)
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"
    whole = ("stream_options", "best_of")  # wrong only beside another field
    assert error["param"] == (None if field in whole else field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"voice": "x"}), ("function_call", "auto"), ("functions", [{"name": "f"}]),
        ("metadata", {"a": "b"}), ("modalities", ["text", "audio"]), ("moderation", {"model": "m"}),
        ("prediction", {"type": "content"}), ("prompt_cache_key", "x"), ("echo", False),
        ("prompt_cache_retention", "24h"), ("prompt_cache_options", {}), ("best_of", 1),
        ("reasoning_effort", "high"), ("safety_identifier", "x"), ("store", True),
        ("service_tier", "flex"), ("tool_choice", "auto"), ("tools", [{"type": "function"}]),
        ("verbosity", "low"), ("web_search_options", {}), ("prompt", "a"), ("no_such_field", 1),
    ],
)  # fmt: skip
def test_unsupported_field_of_a_chat(live: Any, field: str, value: Any) -> None:
    error = refusal(live.post(CHAT, messages=HELLO, max_tokens=2, **{field: value}), 400)
    assert error["param"] == field
    assert field in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None), ("prompt", 5), ("prompt", {}), ("prompt", []), ("prompt", [1, "a"]),
        ("prompt", [[1], "a"]), ("prompt", [[]]), ("prompt", [1.5]), ("prompt", [True]),
        ("prompt", ""), ("prompt", ["a", ""]), ("prompt", [259]), ("prompt", [-1]),
        ("prompt", [10**30]), ("prompt", "\ud83d"), ("prompt", ["fine", "half \udc00"]),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", "5"), ("max_tokens", 1.5),
        ("max_tokens", True), ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"),
        ("temperature", True), ("top_p", 0), ("top_p", 1.01), ("top_p", []), ("top_k", -1),
        ("seed", 1.5), ("seed", 2**63), ("seed", "x"), ("stop", ""), ("stop", ["a", ""]),
        ("stop", [1]), ("stop", ["a", "b", "c", "d", "e"]), ("stop", {}), ("stop", "\ud83d"),
        ("stream", "yes"), ("stream", 1), ("user", 5), ("model", 5), ("model", None),
        ("ignore_eos", 1), ("stream_options", 5), ("stop", "x" * 257), ("n", 0), ("n", 33),
        ("n", True), ("n", 1.5), ("logprobs", -1), ("logprobs", 21), ("logprobs", True),
        ("frequency_penalty", 2.1), ("presence_penalty", -2.1), ("presence_penalty", "x"),
        ("repetition_penalty", 0), ("repetition_penalty", 1e-9), ("min_p", 1.1), ("min_p", -0.1),
        ("top_k", 1.5), ("top_k", 2**40), ("min_tokens", -1), ("min_tokens", 3),
        ("stop_token_ids", [1.5]), ("stop_token_ids", 5), ("stop_token_ids", [1] * 65),
        ("priority", 101), ("priority", "high"), ("echo", "yes"), ("best_of", "two"),
        ("logit_bias", []), ("logit_bias", {"a": 1}), ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 101}), ("logit_bias", {"1": "2"}), ("logit_bias", {"1": True}),
        ("logit_bias", {str(i): 0 for i in range(1025)}), ("logit_bias", {"259": 1}),
        ("stop_token_ids", [259]), ("stop_token_ids", [-1]),
        ("response_format", {"type": "regex", "value": "("}),
        ("response_format", {"type": "json_schema", "json_schema": {
            "name": "a", "schema": {"type": "nothing"}}}),
        ("response_format", "json"), ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_object", "x": 1}), ("response_format", {}),
        ("response_format", {"type": "json_schema"}), ("response_format", {"type": "regex"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}),
        ("response_format", {"type": "json_schema", "json_schema": {
            "name": "a", "schema": {}, "strict": 1}}),
        ("response_format", {"type": "json_schema", "json_schema": {
            "name": "a", "schema": {}, "description": "b"}}),
        ("response_format", {"type": "regex", "value": "a" * 70_000}),
    ],
)  # fmt: skip
def test_wrong_value_of_a_completion(live: Any, field: str, value: Any) -> None:
    body = {"prompt": "a", "max_tokens": 2, field: value}
    error = refusal(live.post(COMPLETIONS, **body), 400)
    assert error["param"].split("[")[0] == field


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"), ("hello", "messages"), ([], "messages"), (["hello"], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"), ([{"content": "a"}], "messages[0].role"),
        ([{"role": "tool", "content": "a"}], "messages[0].role"),
        ([*HELLO, {"role": "king", "content": "a"}], "messages[1].role"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": "\udfff"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
         "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}],
         "messages[0].content"),
        ([{"role": "user", "content": "a", "name": "Ada"}], "messages[0].name"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{}]}], "messages[0].tool_calls"),
        ([{"role": "user", "content": "a", "extra": 1}], "messages[0].extra"),
    ],
)  # fmt: skip
def test_wrong_messages(live: Any, messages: Any, param: str) -> None:
    error = refusal(live.post(CHAT, messages=messages, max_tokens=2), 400)
    assert error["param"] == param


def test_fields_inside_stream_options(live: Any) -> None:
    for field, value in (("include_obfuscation", True), ("x", 1), ("include_usage", "yes")):
        body = {"prompt": "a", "stream": True, "stream_options": {field: value}}
        error = refusal(live.post(COMPLETIONS, **body), 400)
        assert error["param"] == f"stream_options.{field}"


def test_two_limits_that_differ(live: Any) -> None:
    body = {"messages": HELLO, "max_tokens": 2, "max_completion_tokens": 3}
    error = refusal(live.post(CHAT, **body), 400)
    assert "max_tokens" in error["message"]
    assert "max_completion_tokens" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (COMPLETIONS, {"prompt": "a", "n": 2, "best_of": 4}, ("best_of", "n")),
        (COMPLETIONS, {"prompt": "a", "echo": True, "logprobs": 1}, ("echo", "logprobs")),
        (CHAT, {"messages": HELLO, "top_logprobs": 2}, ("top_logprobs", "logprobs: true")),
        (CHAT, {"messages": HELLO, "top_logprobs": 2, "logprobs": False}, ("top_logprobs",)),
        (CHAT, {"messages": HELLO, "logprobs": 2}, ("logprobs",)),
        (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, ("top_logprobs",)),
    ],
)
def test_fields_that_do_not_go_together(
    live: Any, path: str, body: dict[str, Any], words: tuple[str, ...]
) -> None:
    error = refusal(live.post(path, **body), 400)
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_every_field_of_openai_s_is_honoured_or_refused_by_name(kind: str) -> None:
    from openai.types import completion_create_params as completion
    from openai.types.chat import completion_create_params as chat

    module, request = {
        "completions": (completion, CompletionRequest), "chat": (chat, ChatRequest),
    }[kind]  # fmt: skip
    theirs = set(module.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert theirs <= request.model_fields.keys() | request.unsupported.keys()
    assert not request.model_fields.keys() & request.unsupported.keys()


def test_part_types_are_named(live: Any) -> None:
    content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]
    error = refusal(live.post(CHAT, messages=[{"role": "user", "content": content}]), 400)
    assert "image_url" in error["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"nonsense", b"[]", b"5", b'"text"', b"null", b"\xff\xfe", b'{"prompt": NaN',
        b"[" * 100_000, b'{"model": "dummy", "prompt": "a", "temperature": NaN}',
        b'{"model": "dummy", "prompt": "a", "temperature": 1e999}',
        b'{"model": "dummy", "prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"model": "dummy", "prompt": "a", "half \\ud83d": 1}',
    ],
)  # fmt: skip
def test_body_that_is_no_request(live: Any, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    refusal(httpx.post(live.url + COMPLETIONS, content=content, headers=headers), 400)


@pytest.mark.parametrize("depth", [50, 300, 900, 990, 5000])
def test_values_nested_deeply_anywhere(live: Any, depth: int) -> None:
    """Whatever part of the way it breaks on, it is the client's error and not the server's."""
    deep = b"[" * depth + b"]" * depth
    schema = b'{"a":' * depth + b"{}" + b"}" * depth
    form = b'{"type": "json_schema", "json_schema": {"name": "a", "schema": %s}}' % schema
    fields = [
        b"prompt",
        b"temperature",
        b"stop",
        b"logit_bias",
        b"stream_options",
        b"no_such_field",
    ]
    for name, value in [*((name, deep) for name in fields), (b"response_format", form)]:
        content = b'{"model": "dummy", "max_tokens": 2, "prompt": "a", "%s": %s}' % (name, value)
        headers = {"content-type": "application/json"}
        response = httpx.post(live.url + COMPLETIONS, content=content, headers=headers)
        # A schema may hold what it does not know; deep enough, it is refused as well.
        assert response.status_code in ((200, 400) if name == b"response_format" else (400,))


def test_other_content_types_are_refused(live: Any) -> None:
    """`curl -d` without a header; and a web page may send text/plain anywhere without asking."""
    content = json.dumps({"model": "dummy", "prompt": "a"})
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        response = httpx.post(
            live.url + COMPLETIONS, content=content, headers={"content-type": kind}
        )
        error = refusal(response, 400)
        assert kind in error["message"]
        assert "application/json" in error["message"]


def test_body_that_is_too_long(live: Any) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 2**16 + 2):
            yield b" " * 2**16

    headers = {"content-type": "application/json"}
    for content in (b" " * (MAX_BODY_BYTES + 1), chunks()):
        error = refusal(httpx.post(live.url + COMPLETIONS, content=content, headers=headers), 413)
        assert str(MAX_BODY_BYTES) in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x" * 3000},
        {"prompt": "x", "max_tokens": 2048},
        {"prompt": "x", "max_tokens": 10**30},
    ],
)  # fmt: skip
def test_request_that_can_never_fit(live: Any, body: dict[str, Any]) -> None:
    error = refusal(live.post(COMPLETIONS, **body), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    assert "2048" in error["message"]  # the dummy's limit


def test_chat_that_can_never_fit(live: Any) -> None:
    error = refusal(live.post(CHAT, messages=[{"role": "user", "content": "x" * 3000}]), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_one_prompt_of_several_that_can_never_fit_stops_all(live: Any) -> None:
    refusal(live.post(COMPLETIONS, prompt=["fine", "x" * 3000], max_tokens=500), 400)
    before = live.wait_until_idle(2)
    assert live.stats().output_tokens - before.output_tokens == 0


def test_more_prompts_than_the_queue_holds(start: Any) -> None:
    with start(max_waiting=4) as live:
        error = refusal(live.post(COMPLETIONS, prompt=["a"] * 5, max_tokens=2), 400)
        assert error["param"] == "prompt"
        assert "4 places" in error["message"]


def test_unknown_model_names_those_there_are(live: Any) -> None:
    for path, body in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": HELLO})):
        error = refusal(live.post(path, **{**body, "model": "gpt-9"}), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "gpt-9" in error["message"]
        assert "dummy" in error["message"]


def test_unknown_urls_and_methods(live: Any) -> None:
    assert "/v1/nothing" in refusal(httpx.get(live.url + "/v1/nothing"), 404)["message"]
    assert "GET" in refusal(httpx.get(live.url + COMPLETIONS), 405)["message"]
    refusal(httpx.get(live.url + "/v1/models/gpt-9"), 404)
