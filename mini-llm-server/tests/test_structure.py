"""Compiled structures: for both kinds of vocabulary, from many threads, and bounded in number."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mini_llm_server.engine import structure
from mini_llm_server.engine.sampling_params import ParameterError, Structure
from mini_llm_server.engine.structure import Grammars, Matcher, forbidden
from mini_llm_server.model.tokenizer import ByteTokenizer, Tokenizer

CPU = torch.device("cpu")


class PairTokenizer(ByteTokenizer):
    """Bytes, ends, and tokens of two letters each: several ways to spell one text."""

    pairs = tuple(f"{a}{b}".encode() for a in "abé" for b in 'cd"')
    vocab_size = ByteTokenizer.vocab_size + len(pairs)

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token stands for."""
        at = token_id - ByteTokenizer.vocab_size
        return self.pairs[at] if at >= 0 else super().token_bytes(token_id)


def allowed(matcher: Matcher, tokenizer: Tokenizer) -> set[int]:
    (row,) = ~forbidden([matcher], tokenizer.vocab_size, CPU)
    return set(row.nonzero()[:, 0].tolist())


def test_every_token_that_the_expression_can_go_on_with_is_allowed_and_no_other() -> None:
    tokenizer = PairTokenizer()
    matcher = Grammars(tokenizer, tokenizer.vocab_size).compile(Structure("regex", "(ac|bd|é)x?"))
    texts = {t: tokenizer.token_bytes(t) for t in range(tokenizer.vocab_size)}
    beginnings = {b"a", b"b", b"ac", b"bd", "é".encode()[:1]}
    assert {texts[t] for t in allowed(matcher, tokenizer)} == beginnings
    (token,) = (t for t, text in texts.items() if text == b"ac")
    matcher.advance(token)
    assert {texts[t] for t in allowed(matcher, tokenizer)} == {b"x", b""}
    copy = matcher.copy()
    copy.advance(ord("x"))
    assert copy.is_complete
    assert not matcher.is_complete  # the copy went on by itself
    assert {texts[t] for t in allowed(matcher, tokenizer)} == {b"x", b""}


def test_special_tokens_are_no_text() -> None:
    tokenizer = ByteTokenizer()
    matcher = Grammars(tokenizer, tokenizer.vocab_size).compile(Structure("regex", "(?s:.*)"))
    assert not {tokenizer.TURN, tokenizer.END_OF_TURN} & allowed(matcher, tokenizer)
    assert tokenizer.EOS in allowed(matcher, tokenizer)
    named = Grammars(tokenizer, tokenizer.vocab_size).compile(Structure("regex", "<special 257>"))
    assert allowed(named, tokenizer) == {ord("<")}


def test_a_token_that_does_not_fit_is_an_error_and_allows_nothing_more() -> None:
    tokenizer = ByteTokenizer()
    matcher = Grammars(tokenizer, tokenizer.vocab_size).compile(Structure("regex", "abc"))
    matcher.advance(ord("z"))
    assert matcher.error
    assert allowed(matcher, tokenizer) == set()


def test_threads_may_compile_at_once_and_only_so_many_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(structure, "CACHED_GRAMMARS", 5)
    tokenizer = ByteTokenizer()
    grammars = Grammars(tokenizer, tokenizer.vocab_size)

    def first(i: int) -> set[int]:
        return allowed(grammars.compile(Structure("regex", f"{i % 10}x")), tokenizer)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(first, range(200))) == [{ord(str(i % 10))} for i in range(200)]
    assert len(grammars._compiled) <= 5 + 8


def test_an_expression_that_explodes_is_refused_before_the_engine_sees_it() -> None:
    grammars = Grammars(ByteTokenizer(), ByteTokenizer.vocab_size)
    with pytest.raises(ParameterError, match="too many expressions"):
        grammars.compile(Structure("regex", "(a{1000}){1000}"))


@pytest.mark.parametrize("expression", ["(x+x+)+y", "[a-z]{1,30000}", ".{1,30000}(foo|bar){100}"])
def test_a_large_expression_is_walked_token_by_token(expression: str) -> None:
    tokenizer = ByteTokenizer()
    matcher = Grammars(tokenizer, tokenizer.vocab_size).compile(Structure("regex", expression))
    for _ in range(50):
        matcher.advance(min(allowed(matcher, tokenizer) - tokenizer.eos_token_ids))
        assert not matcher.error


def test_a_tokenizer_without_an_end_is_told_so() -> None:
    class Endless(ByteTokenizer):
        eos_token_ids = frozenset[int]()

    with pytest.raises(ParameterError, match="no end-of-sequence token"):
        Grammars(Endless(), 256).compile(Structure("json_object"))
