"""The terminal's conversation: what is remembered, what an interrupt leaves, what is too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mini_llm_server.engine.engine import Engine
from mini_llm_server.engine.request import SamplingParams
from mini_llm_server.terminal_chat import Conversation, talk


def greedy(engine: Engine, written: list[str], **options: Any) -> Conversation:
    return Conversation(engine, written.append, temperature=0, **{"max_tokens": 6, **options})


def test_each_turn_is_asked_with_all_before_it(make_engine: Callable[..., Engine]) -> None:
    engine, written = make_engine(), list[str]()
    conversation = greedy(engine, written, system="Be brief.")
    first = conversation.ask("one")
    second = conversation.ask("two")
    assert "".join(written) == first + second
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    assert conversation.messages == [*turns, {"role": "assistant", "content": second}]
    ids = engine.loaded.tokenizer.apply_chat_template(turns)
    engine.add("alone", ids, SamplingParams(max_tokens=6, temperature=0))
    alone = ""
    while engine.has_work():
        alone += "".join(output.text for output in engine.step())
    assert alone == second
    conversation.reset()
    assert conversation.messages == turns[:1]


def test_an_interrupt_ends_the_answer_and_keeps_what_there_is(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, written = make_engine(), list[str]()
    step, steps = engine.step, iter(range(100))

    def interrupted() -> object:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(engine, "step", interrupted)
    conversation = greedy(engine, written, max_tokens=40)
    answer = conversation.ask("go on")
    assert answer == "".join(written)
    assert conversation.messages[-1] == {"role": "assistant", "content": answer}
    assert not engine.has_work()
    assert engine.stats().blocks_used == 0


def test_a_conversation_that_grew_too_long_is_refused_and_forgotten_on_request(
    make_engine: Callable[..., Engine],
) -> None:
    engine, said = make_engine(max_model_len=60), list[str]()
    conversation = greedy(engine, [])
    lines = iter(["x" * 30, "y" * 30, "/reset", "z"])

    def read() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    talk(conversation, read, said.append)
    assert any("above the limit of 60" in line and "/reset" in line for line in said)
    assert [m["content"][:1] for m in conversation.messages if m["role"] == "user"] == ["z"]
