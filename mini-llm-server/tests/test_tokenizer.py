"""Tokenizers: bytes in and out, chat templates, and BPE against a plain one written out here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_llm_server.model.backend_tokenizer import BackendTokenizer
from mini_llm_server.model.gguf import GGUFFile
from mini_llm_server.model.gguf_tokenizer import gguf_tokenizer
from mini_llm_server.model.loader import find_smollm2
from mini_llm_server.model.tokenizer import ByteTokenizer, Tokenizer

TEXTS = st.text(
    alphabet=st.one_of(
        st.characters(codec="utf-8"), st.sampled_from("  \n\tthe'sll0123456789.,<|>é🙂")
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return GGUFFile(find_smollm2()).metadata


@pytest.fixture(scope="module")
def smollm2(metadata: dict[str, Any]) -> BackendTokenizer:
    return gguf_tokenizer(metadata)


# SmolLM2's vocabulary has no token for these, so its tokenizer drops them: control characters,
# and first bytes of UTF-8 for planes without characters or for none at all.
MISSING_BYTES = bytes.fromhex("04061314161d c0c1f1f2f5f6f7f8f9fafbfcfdfeff")


class PlainBPE:
    """GPT-2's algorithm, with each digit apart: split, spell bytes, merge the best pair first."""

    WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    def __init__(self, metadata: dict[str, Any]) -> None:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        self.spelling = {b: chr(b) for b in printable}
        for b in range(256):
            self.spelling.setdefault(b, chr(256 + len(self.spelling) - len(printable)))
        merges = metadata["tokenizer.ggml.merges"]
        self.rank = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
        self.ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}

    def encode(self, text: str) -> list[int]:
        parts = regex.findall(r"\p{N}|\P{N}+", text)
        words = [word for part in parts for word in regex.findall(self.WORDS, part)]
        return [self.ids[piece] for word in words for piece in self.pieces(word)]

    def pieces(self, word: str) -> list[str]:
        pieces = [self.spelling[b] for b in word.encode() if b not in MISSING_BYTES]
        while True:
            pairs = [pair for pair in pairwise(pieces) if pair in self.rank]
            if not pairs:
                return pieces
            best = min(pairs, key=self.rank.__getitem__)
            merged, i = [], 0
            while i < len(pieces):
                step = 2 if tuple(pieces[i : i + 2]) == best else 1
                merged.append("".join(pieces[i : i + step]))
                i += step
            pieces = merged


@pytest.fixture(scope="module")
def plain_bpe(metadata: dict[str, Any]) -> PlainBPE:
    return PlainBPE(metadata)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_encode_is_plain_bpe_and_decode_gives_the_text_back(
    smollm2: BackendTokenizer, plain_bpe: PlainBPE, text: str
) -> None:
    ids = smollm2.encode(text)
    assert ids == plain_bpe.encode(text)
    known = bytes(b for b in text.encode() if b not in MISSING_BYTES)
    assert b"".join(map(smollm2.token_bytes, ids)) == known
    assert smollm2.decode(ids) == known.decode(errors="replace")


def test_each_digit_is_a_token(smollm2: BackendTokenizer) -> None:
    assert [smollm2.decode([i]) for i in smollm2.encode("in 2026!")] == [
        "in", " ", "2", "0", "2", "6", "!",
    ]  # fmt: skip


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=20))
def test_any_ids_decode_as_the_tokenizers_package_does(
    smollm2: BackendTokenizer, ids: list[int]
) -> None:
    assert smollm2.decode(ids) == smollm2._backend.decode(ids, skip_special_tokens=True)


def test_smollm2s_chat_template(smollm2: BackendTokenizer) -> None:
    ids = smollm2.apply_chat_template([{"role": "user", "content": "Hi"}])
    start, end = 1, 2  # <|im_start|>, <|im_end|>
    newline = smollm2.encode("\n")
    assert ids == [
        start, *smollm2.encode(
            "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        ), end, *newline,
        start, *smollm2.encode("user\nHi"), end, *newline,
        start, *smollm2.encode("assistant\n"),
    ]  # fmt: skip
    own_system = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    assert smollm2.decode(smollm2.apply_chat_template(own_system)).startswith("system\nBe brief")
    assert smollm2.eos_token_ids == {0, end}


def test_a_template_cannot_leave_its_sandbox_and_its_refusal_is_a_value_error(
    metadata: dict[str, Any],
) -> None:
    for template, message in (
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", "refuses"),
    ):
        broken = gguf_tokenizer({**metadata, "tokenizer.chat_template": template})
        with pytest.raises(ValueError, match=message):
            broken.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_a_tokenizer_of_another_kind_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="llama-bpe"):
        gguf_tokenizer({**metadata, "tokenizer.ggml.pre": "llama-bpe"})


@given(text=TEXTS)
def test_the_byte_tokenizer_gives_the_text_back(text: str) -> None:
    tokenizer: Tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}])
    assert tokenizer.decode(chat) == f"user\n{text}assistant\n"
    assert not set(chat) & tokenizer.eos_token_ids
