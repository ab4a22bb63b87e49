"""Text to token ids and back, and the chat template, behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

Message = Mapping[str, str]  # {"role": "user", "content": "..."}


class Tokenizer(Protocol):
    """What the engine and the API need of a tokenizer."""

    vocab_size: int
    eos_token_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, behind what the model's own tokenizer adds in front."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens have none."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes one token stands for: their concatenation is the text in UTF-8.

        A special token stands for none, and neither does an id that the tokenizer does not use.
        """

    def token_text(self, token_id: int) -> str:
        """Return how one token is shown, also a special one; broken UTF-8 becomes U+FFFD."""

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, up to where the assistant's answer starts.

        Raises:
            ValueError: the model takes no conversations, or not this one.
        """


class ByteTokenizer:
    """A token a byte, an end-of-sequence token and two that mark turns: for the dummy model."""

    EOS, TURN, END_OF_TURN = 256, 257, 258
    vocab_size = 259
    eos_token_ids = frozenset({EOS})

    def encode(self, text: str) -> list[int]:
        """Return the UTF-8 bytes."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the byte, or nothing for a special token."""
        return bytes([token_id]) if token_id < 256 else b""

    def token_text(self, token_id: int) -> str:
        """Return the byte as a character, or the special token's name."""
        names = {self.EOS: "<eos>", self.TURN: "<turn>", self.END_OF_TURN: "<end-of-turn>"}
        return names.get(token_id) or self.token_bytes(token_id).decode(errors="replace")

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        """Return the turns, each as TURN role newline content END_OF_TURN."""
        ids: list[int] = []
        for message in messages:
            turn = f"{message['role']}\n{message['content']}"
            ids += [self.TURN, *self.encode(turn), self.END_OF_TURN]
        return [*ids, self.TURN, *self.encode("assistant\n")]
