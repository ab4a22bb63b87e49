"""The official `openai` client against the server, in every mode that the server has."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from mini_llm_server.model.loader import LoadedModel
from pydantic import BaseModel

TALK: list[Any] = [{"role": "user", "content": "Grüße 🙂"}]
GREEDY: dict[str, Any] = {"model": "dummy", "temperature": 0}


@pytest.fixture
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["dummy"]
    assert client.models.retrieve("dummy").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_a_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=TALK, max_completion_tokens=20, **GREEDY)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage
    assert whole.usage.completion_tokens == 20
    stream = client.chat.completions.create(
        messages=TALK,
        max_completion_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 20


def test_the_client_s_own_stream_helper(client: openai.OpenAI) -> None:
    """It raises where an answer was cut off, so this one ends by itself: three letters A."""
    ends = {"extra_body": {"min_tokens": 3, "stop_token_ids": [66]}}
    asked = {"messages": TALK, "logit_bias": {"65": 99, "66": 100}, **GREEDY, **ends}
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "AAA"
    assert final.choices[0].finish_reason == "stop"


def test_completions_of_several_prompts_whole_and_streamed(client: openai.OpenAI) -> None:
    prompts = ["one", "zwei 🙂", "three"]
    whole = client.completions.create(prompt=prompts, max_tokens=12, **GREEDY)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [""] * 3
    for chunk in client.completions.create(prompt=prompts, max_tokens=12, stream=True, **GREEDY):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_n_answers_with_a_seed_are_the_same_each_time_and_unlike_each_other(
    client: openai.OpenAI,
) -> None:
    def ask(stream: bool) -> list[str]:
        body: dict[str, Any] = {"model": "dummy", "n": 3, "seed": 7, "max_tokens": 16}
        if not stream:
            whole = client.completions.create(prompt=["a", "b"], **body)
            assert whole.usage
            assert whole.usage.completion_tokens == 6 * 16
            assert whole.usage.prompt_tokens == 2
            return [choice.text for choice in whole.choices]
        texts = [""] * 6
        for chunk in client.completions.create(prompt=["a", "b"], stream=True, **body):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        return texts

    texts = ask(stream=False)
    assert len(set(texts)) == 6
    assert ask(stream=True) == texts


def test_logprobs_of_a_chat(client: openai.OpenAI, dummy: LoadedModel) -> None:
    def tokens_of(choice: Any) -> list[Any]:
        assert choice.logprobs
        return list(choice.logprobs.content)

    asked = {"messages": TALK, "max_tokens": 10, "logprobs": True, "top_logprobs": 4, **GREEDY}
    choice = client.chat.completions.create(**asked).choices[0]
    tokens = tokens_of(choice)
    assert len(tokens) == 10
    for token in tokens:
        assert len(token.top_logprobs) == 4
        logprobs = [top.logprob for top in token.top_logprobs]
        assert logprobs == sorted(logprobs, reverse=True)
        assert token.logprob == logprobs[0] <= 0  # greedy
        assert sum(math.exp(each) for each in logprobs) <= 1 + 1e-6
    whole = b"".join(bytes(token.bytes or ()) for token in tokens)
    assert whole.decode(errors="replace") == choice.message.content
    streamed = [
        token
        for chunk in client.chat.completions.create(stream=True, **asked)
        if chunk.choices[0].logprobs
        for token in tokens_of(chunk.choices[0])
    ]
    assert [(t.token, t.bytes) for t in streamed] == [(t.token, t.bytes) for t in tokens]
    plain = client.chat.completions.create(**{**asked, "top_logprobs": None}).choices[0]
    assert [token.top_logprobs for token in tokens_of(plain)] == [[]] * 10


def test_logprobs_of_a_completion(client: openai.OpenAI) -> None:
    (choice,) = client.completions.create(
        prompt="abc", max_tokens=8, logprobs=2, temperature=1.5, seed=1, model="dummy"
    ).choices
    found = choice.logprobs
    assert found
    assert found.tokens
    assert found.token_logprobs
    assert found.top_logprobs
    assert found.text_offset
    assert [len(each) for each in (found.tokens, found.token_logprobs, found.text_offset)] == [
        8
    ] * 3
    assert found.text_offset[0] == 0
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert top[token] == logprob  # the sampled one is there too, likely or not
        assert 2 <= len(top) <= 3


class City(BaseModel):
    name: str
    inhabitants: int


def test_parse_holds_the_answer_to_a_pydantic_model(client: openai.OpenAI) -> None:
    """A random model's bytes run on: the schema bounds what can, and the form holds anyway."""
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Rome", "Bern"]}, "inhabitants": {"enum": [1, 2]}},
        "required": ["name", "inhabitants"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    whole = client.chat.completions.create(
        messages=TALK, max_tokens=200, response_format=form, **GREEDY
    )
    text = whole.choices[0].message.content or ""
    assert whole.choices[0].finish_reason == "stop"
    city = City.model_validate_json(text)
    assert city.name in ("Rome", "Bern")
    # The client's own helper makes the schema from the class, and refuses a cut-off answer itself.
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(messages=TALK, max_tokens=3, response_format=City, **GREEDY)


def test_a_regular_expression(client: openai.OpenAI) -> None:
    form: Any = {"type": "regex", "value": "(yes|no), [0-9]{3}"}
    for endpoint in ("chat", "completions"):
        if endpoint == "chat":
            text = (
                client.chat.completions.create(
                    messages=TALK, max_tokens=50, response_format=form, **GREEDY
                )
                .choices[0]
                .message.content
            )
        else:
            text = (
                client.completions.create(
                    prompt="a", max_tokens=50, extra_body={"response_format": form}, **GREEDY
                )
                .choices[0]
                .text
            )
        word, number = (text or "").split(", ")
        assert word in ("yes", "no")
        assert number.isdigit()


def test_a_bias_and_penalties_change_what_is_drawn(client: openai.OpenAI) -> None:
    def ask(**options: Any) -> str:
        return (
            client.completions.create(prompt="a", max_tokens=20, **GREEDY, **options)
            .choices[0]
            .text
        )

    plain = ask()
    assert ask(logit_bias={"65": 100}) == "A" * 20
    biased = {"logit_bias": {"65": 100, "66": 99}}
    assert ask(**biased, presence_penalty=2.0).startswith("AB")
    assert set(ask(**biased, frequency_penalty=0.4)[:8]) == {"A", "B"}
    assert ask(extra_body={"repetition_penalty": 5.0}) != plain
    assert ask(extra_body={"min_p": 1.0, "temperature": 2.0}) == plain
    assert ask(extra_body={"top_k": 1, "temperature": 2.0}) == plain


def test_echo_and_the_end_of_an_answer(client: openai.OpenAI) -> None:
    plain = client.completions.create(prompt="ab", max_tokens=6, **GREEDY).choices[0].text
    for prompt in ("ab", [97, 98]):
        echoed = client.completions.create(prompt=prompt, max_tokens=6, echo=True, **GREEDY)
        assert echoed.choices[0].text == "ab" + plain
    streamed = client.completions.create(
        prompt="ab", max_tokens=6, echo=True, stream=True, **GREEDY
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == "ab" + plain
    always_65 = {"logit_bias": {"65": 100}}
    stopped = client.completions.create(
        prompt="ab", max_tokens=6, **GREEDY, **always_65, extra_body={"stop_token_ids": [65]}
    )
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")
    late = client.completions.create(
        prompt="ab", max_tokens=6, **GREEDY, **always_65,
        extra_body={"stop_token_ids": [65], "min_tokens": 4},
    )  # fmt: skip
    assert late.usage
    assert late.usage.completion_tokens >= 4


def test_cached_tokens_are_reported(client: openai.OpenAI) -> None:
    prompt = "a prompt of more than one block, told twice " * 4
    for times in range(2):
        usage = client.completions.create(prompt=prompt, max_tokens=1, **GREEDY).usage
        assert usage
        assert usage.prompt_tokens_details
        assert (usage.prompt_tokens_details.cached_tokens or 0) > 0 or times == 0


def test_errors_are_the_client_s_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(messages=TALK, top_p=3, **GREEDY)
    assert wrong.value.param == "top_p"
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            messages=TALK,
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
            **GREEDY,
        )
    assert tools.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-9", prompt="a")


def test_the_request_id_comes_back(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="a", max_tokens=1, **GREEDY)
    assert answer._request_id
    named = client.completions.with_raw_response.create(
        prompt="a", max_tokens=1, **GREEDY, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert named.headers["x-request-id"] == "mine-1"


def test_a_stream_that_is_left_ends_its_request(client: openai.OpenAI, live: Any) -> None:
    stream = client.completions.create(
        prompt="a", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}, **GREEDY
    )
    next(iter(stream))
    stream.close()
    live.wait_until_idle(5)


def test_many_asynchronous_clients(live: Any) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=live.url + "/v1", api_key="none") as client:

            async def ask(i: int) -> tuple[str, str]:
                messages: list[Any] = [{"role": "user", "content": f"number {i}"}]
                whole = await client.chat.completions.create(
                    messages=messages, max_tokens=10, **GREEDY
                )
                stream = await client.chat.completions.create(
                    messages=messages, max_tokens=10, stream=True, **GREEDY
                )
                text = ""
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                return whole.choices[0].message.content or "", text

            for whole, streamed in await asyncio.gather(*(ask(i) for i in range(20))):
                assert whole == streamed

    asyncio.run(run())


def test_json_object(client: openai.OpenAI) -> None:
    bias = {str(ord("}")): 100}  # a random model seldom ends an object by itself
    whole = client.chat.completions.create(
        messages=TALK,
        max_tokens=100,
        response_format={"type": "json_object"},
        logit_bias=bias,
        **GREEDY,
    )
    assert isinstance(json.loads(whole.choices[0].message.content or ""), dict)
