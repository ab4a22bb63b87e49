"""What is streamed as text: whole characters, nothing of a stop string, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_llm_server.engine.engine import Engine
from mini_llm_server.engine.request import Output, SamplingParams
from mini_llm_server.engine.text_stream import TextStream
from mini_llm_server.llm import LLM

MakeEngine = Callable[..., Engine]
RunAll = Callable[..., dict[str, list[Output]]]


def feed(stream: TextStream, pieces: list[bytes]) -> list[str]:
    texts = []
    for piece in pieces:
        texts.append(stream.push(piece))
        if stream.stopped:
            break
    return [*texts, stream.finish()]


@given(
    text=st.text(alphabet="ab é🙂", max_size=30),
    stop=st.lists(st.text(alphabet="ab é🙂", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 90), max_size=20),
)
def test_text_ends_before_the_first_stop_string_however_the_bytes_are_cut(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    data = text.encode()
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]
    stream = TextStream(stop)
    found = [text.find(s) for s in stop if s in text]
    result = "".join(feed(stream, pieces))
    # Complete in an earlier piece, a later-starting stop string may win; whatever won, no stop
    # string is in the result and the rest of the text begins with one.
    assert text.startswith(result)
    assert all(s not in result for s in stop)
    assert stream.stopped == bool(found)
    if found:
        assert any(text[len(result) :].startswith(s) for s in stop)
    else:
        assert result == text


@given(data=st.binary(max_size=40), size=st.integers(1, 5))
def test_broken_utf8_reads_as_a_decode_of_the_whole(data: bytes, size: int) -> None:
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert "".join(feed(TextStream(), pieces)) == data.decode(errors="replace")


def test_a_character_comes_out_when_its_last_byte_is_there() -> None:
    stream = TextStream()
    assert [stream.push(bytes([b])) for b in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]


def test_text_is_held_only_while_it_may_become_a_stop_string() -> None:
    stream = TextStream(["STOP"])
    assert [stream.push(p) for p in (b"one S", b"T", b"art", b" STO", b"P!")] == [
        "one ", "", "STart", " ", "",
    ]  # fmt: skip
    assert stream.stopped
    assert stream.finish() == ""


def test_what_was_held_comes_with_the_last_piece() -> None:
    stream = TextStream(["STOP"])
    assert stream.push(b"STO") == ""
    assert stream.finish() == "STO"


def scripted(engine: Engine, script: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model say the bytes of `script` one by one instead of its own choice."""
    answer = list(script)

    def say(logits: object, requests: list[object]) -> list[int | None]:
        return [answer.pop(0) for _ in requests]

    monkeypatch.setattr("mini_llm_server.engine.engine.sample", say)


def test_a_stop_string_across_tokens_ends_the_request_and_is_not_streamed(
    make_engine: MakeEngine, run_all: RunAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    scripted(engine, "a♥b ENOUGH".encode(), monkeypatch)
    engine.add("it", [1], SamplingParams(50, stop=("EN", "zzz")))
    outputs = run_all(engine)["it"]
    assert "".join(o.text for o in outputs) == "a♥b "
    assert [o.text for o in outputs] == ["a", "", "", "♥", "b", " ", "", ""]
    assert [o.finish_reason for o in outputs] == [None] * 7 + ["stop"]
    assert outputs[-1].completion_tokens == len(outputs) == 8


def test_an_end_of_sequence_token_ends_it_unless_ignored(
    make_engine: MakeEngine, run_all: RunAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    (eos,) = make_engine().loaded.tokenizer.eos_token_ids
    for ignore_eos, expected in ((False, ("hi", "stop", 3)), (True, ("hi!", "length", 4))):
        engine = make_engine()
        answer = [*b"hi", eos, *b"!"]
        monkeypatch.setattr(
            "mini_llm_server.engine.engine.sample",
            lambda logits, requests, answer=answer: [answer.pop(0)],
        )
        engine.add("it", [1], SamplingParams(4, ignore_eos=ignore_eos))
        outputs = run_all(engine)["it"]
        last = outputs[-1]
        text = "".join(o.text for o in outputs)
        assert (text, last.finish_reason, last.completion_tokens) == expected


def test_llm_completes_prompts_in_their_order_even_past_the_queues_limit() -> None:
    params = SamplingParams(5, temperature=0, ignore_eos=True)
    prompts = [f"prompt {i}" for i in range(9)]
    narrow = LLM("dummy", max_waiting=2, max_num_seqs=2)
    together = narrow.generate(prompts, params)
    assert [c.prompt for c in together] == prompts
    wide = LLM("dummy")
    for prompt, completion in zip(prompts, together, strict=True):
        (alone,) = wide.generate([prompt], params)
        assert alone == completion
        assert len(alone.token_ids) == 5
    each = [replace(params, max_tokens=n) for n in (1, 2)]
    assert [len(c.token_ids) for c in wide.generate(["a", "b"], each)] == [1, 2]
    with pytest.raises(ValueError, match="2 prompts came with 1 params"):
        wide.generate(["a", "b"], each[:1])
    assert wide.generate([]) == []
