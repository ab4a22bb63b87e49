"""A byte-level BPE tokenizer and its chat template, built from a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mini_llm_server.model.tokenizer import Message

_CONTROL = 3  # ggml's token type for tokens that are no text
# Ends of text by their usual names: the metadata names only the one that ends a chat turn, and a
# model that completes plain text ends a document with another.
_END_TOKENS = ("<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>")


class BPETokenizer:
    """Byte-level BPE; see `model.tokenizer.Tokenizer` for what the methods promise.

    Special tokens that stand in a text as such ("<|im_end|>") are read as special tokens.

    Args:
        metadata: a GGUF file's, with the keys tokenizer.ggml.*.

    Raises:
        ValueError: the file's tokenizer is of another kind.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise ValueError(f"the tokenizer is of kind {kind}: only ('gpt2', 'smollm') is read")
        self._tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        types = metadata["tokenizer.ggml.token_type"]
        self._special = {i for i, t in enumerate(types) if t == _CONTROL}
        self._special_text = {
            name: self._tokens[metadata[f"tokenizer.ggml.{name}_id"]]
            for name in ("bos_token", "eos_token")
        }
        vocab = {token: i for i, token in enumerate(self._tokens)}
        merges = [tuple(m.split(" ", 1)) for m in metadata["tokenizer.ggml.merges"]]
        self._backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        self._backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        self._backend.decoder = decoders.ByteLevel()
        self._backend.add_special_tokens(
            [AddedToken(self._tokens[i], special=True, normalized=False) for i in self._special]
        )
        self.vocab_size = len(self._tokens)
        ends = {vocab[name] for name in _END_TOKENS if vocab.get(name) in self._special}
        self.eos_token_ids = frozenset(ends | {metadata["tokenizer.ggml.eos_token_id"]})
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        environment.globals["raise_exception"] = _raise_in_template
        self._template = environment.from_string(metadata["tokenizer.chat_template"])

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without anything added in front."""
        # The batch call lets go of the GIL; encode() keeps it, and a long prompt, tokenised in a
        # worker thread, would stop every stream for as long.
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens have none, broken UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes one token stands for; none for a special token."""
        if token_id in self._special:
            return b""
        return bytes(_BYTE_OF[char] for char in self._tokens[token_id])

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, up to where the assistant's answer starts.

        Raises:
            ValueError: the template refuses the conversation.
        """
        try:
            text = self._template.render(
                messages=messages, add_generation_prompt=True, **self._special_text
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return self.encode(text)


def _raise_in_template(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _byte_of_char() -> dict[str, int]:
    """Return GPT-2's spelling of bytes as characters, read backwards.

    Bytes that print as Latin-1 stand for themselves, the others for U+0100 and up in their order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_of_char()
