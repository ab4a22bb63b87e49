"""A tokenizer of the `tokenizers` package, with the bytes of each token and a chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from tokenizers import Tokenizer

from mini_llm_server.model.chat_template import ChatTemplate
from mini_llm_server.model.tokenizer import Message


class BackendTokenizer:
    """See `model.tokenizer.Tokenizer` for what the methods promise.

    Special tokens that stand in a text as such ("<|im_end|>") are read as special tokens.

    Args:
        backend: encodes.
        bytes_of: the bytes of a token's spelling in the vocabulary.
        literal: ids of tokens that are spelled as they are, whatever `bytes_of` says.
        special: ids of tokens that are no text.
        eos: ids of tokens that end an answer.
        template: None where the model has none: it then takes no conversations.
    """

    def __init__(
        self,
        backend: Tokenizer,
        bytes_of: Callable[[str], bytes],
        *,
        literal: Set[int] = frozenset(),
        special: Set[int],
        eos: Set[int],
        template: ChatTemplate | None,
    ) -> None:
        self._backend = backend
        self._bytes_of = bytes_of
        self._literal = literal
        self._special = special
        self._template = template
        self.vocab_size = max(backend.get_vocab().values(), default=-1) + 1
        self.eos_token_ids = frozenset(eos)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, behind what the model's tokenizer adds in front."""
        return self._encode(text, add_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens have none, broken UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes one token stands for; none for a special token or an unused id."""
        if token_id in self._special:
            return b""
        token = self._backend.id_to_token(token_id)
        if token is None:  # a model may have rows for more ids than its tokenizer uses
            return b""
        return token.encode() if token_id in self._literal else self._bytes_of(token)

    def token_text(self, token_id: int) -> str:
        """Return how one token is shown, also a special one."""
        if token_id in self._special:
            return str(self._backend.id_to_token(token_id))
        return self.token_bytes(token_id).decode(errors="replace")

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, up to where the assistant's answer starts.

        Raises:
            ValueError: there is no template, or it refuses the conversation.
        """
        if self._template is None:
            raise ValueError("this model has no chat template: use /v1/completions")
        return self._encode(self._template.render(messages), add_special_tokens=False)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # The batch call lets go of the GIL; encode() keeps it, and a long prompt, tokenised in a
        # worker thread, would stop every stream for as long.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids
