"""Holds answers to a form (JSON, a JSON schema, a regular expression), token by token.

llguidance keeps, for each answer, a parser over bytes, and says which tokens it could read next;
all others are forbidden before sampling. So the form holds whatever the model would rather say.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import llguidance
import torch
from torch import Tensor

from mini_llm_server.engine.sampling_params import ParameterError, Structure
from mini_llm_server.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

CACHED_GRAMMARS = 64
TRIAL_TOKENS = 3
# A small model can fall into an endless run of blanks, which JSON allows anywhere.
JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r"[ \n\t]{0,8}"}


class Matcher:
    """Where in its structure one answer is."""

    def __init__(self, parser: llguidance.LLMatcher) -> None:
        self._parser = parser

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._parser.is_stopped()

    def copy(self) -> Matcher:
        """Return one that goes on from here by itself."""
        return Matcher(self._parser.deep_copy())

    @property
    def error(self) -> str:
        """Why the parser gave up: its limits bound time and memory. Empty while it works."""
        return self._parser.get_error().strip()

    def advance(self, token: int) -> None:
        """Read a sampled token; one that does not fit becomes an `error`."""
        self._parser.consume_token(token)

    def fill(self, bits: Tensor) -> None:
        """Write into an int32 row which tokens may come next, a bit each, the lowest first.

        After an error that is none.
        """
        if not self._parser.is_error():
            self._parser.unsafe_compute_mask_ptr(bits.data_ptr(), bits.numel() * bits.itemsize)
        if self._parser.is_error():
            bits.zero_()


class Grammars:
    """Compiles structures for one tokenizer; any thread may.

    Args:
        tokenizer: of the model.
        vocab_size: the first so many ids are the ones that are sampled.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._compiled: dict[Structure, llguidance.LLMatcher] = {}

    def compile(self, structure: Structure) -> Matcher:
        """Return a matcher at the structure's start; quick when it was compiled before.

        Raises:
            ParameterError: it is no valid schema or expression, uses what is not supported, or
                is too large.
        """
        with self._lock:
            parser = self._compiled.pop(structure, None)
            if parser is not None:
                self._compiled[structure] = parser  # now the one used last
        if parser is None:
            # Without the lock: a large schema takes long, and the engine's thread asks here too.
            parser = self._compile(structure)
            with self._lock:
                if len(self._compiled) >= CACHED_GRAMMARS:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[structure] = parser
        return Matcher(parser.deep_copy())

    def _compile(self, structure: Structure) -> llguidance.LLMatcher:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer, self._vocab_size)
        try:
            if structure.kind == "regex":
                grammar = llguidance.LLMatcher.grammar_from_regex(structure.spec)
            else:
                schema = structure.spec if structure.kind == "json_schema" else '{"type":"object"}'
                if not isinstance(json.loads(schema), dict):
                    raise ValueError("a JSON schema is an object")
                grammar = llguidance.LLMatcher.grammar_from_json_schema(
                    schema, overrides=JSON_OPTIONS
                )
        except (ValueError, RecursionError) as error:
            raise ParameterError(
                "structure", f"the {structure.kind} cannot be read: {error}"
            ) from None
        limits = llguidance.LLParserLimits(verbose_errors=False)
        parser = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        # What explodes does so in its first tokens: better here than in the engine's thread.
        trial = Matcher(parser.deep_copy())
        for _ in range(TRIAL_TOKENS):
            allowed = (~forbidden([trial], self._vocab_size, torch.device("cpu"))[0]).nonzero()
            if trial.error or trial.is_complete:
                break
            trial.advance(int(allowed[-1]))
        if trial.error:
            reason = trial.error.splitlines()[0]
            reason = "nothing matches it" if reason.startswith("NoExtension") else reason
            raise ParameterError("structure", f"the {structure.kind} is not supported: {reason}")
        return parser


def forbidden(matchers: Sequence[Matcher], vocab_size: int, device: torch.device) -> Tensor:
    """Return [len(matchers), vocab_size] booleans: what each form does not allow next."""
    bits = torch.zeros(len(matchers), -(-vocab_size // 32), dtype=torch.int32)
    for row, matcher in zip(bits, matchers, strict=True):
        matcher.fill(row)
    shifts = torch.arange(32, dtype=torch.int32)
    allowed = ((bits[:, :, None] >> shifts) & 1).bool().flatten(1)
    return ~allowed[:, :vocab_size].to(device)


@dataclass(frozen=True)
class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    tokenizer: Tokenizer
    bos_token_id: int | None = None

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return self.tokenizer.encode(text)


def _vocabulary(tokenizer: Tokenizer, vocab_size: int) -> llguidance.LLTokenizer:
    tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
    # What stands for no bytes is no text: a special token, or a hole in the vocabulary. It needs
    # a name of its own, which no text can be mistaken for.
    special = [token for token, data in enumerate(tokens) if not data]
    for token in special:
        tokens[token] = f"<special {token}>".encode()
    ends = sorted(token for token in tokenizer.eos_token_ids if token < vocab_size)
    if not ends:
        raise ParameterError(
            "structure",
            "this model's tokenizer names no end-of-sequence token, which a structure needs to "
            "end: leave the structure out",
        )
    described = _Vocabulary(tokens, special, ends[0], tokenizer)
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(described), eos_token=ends)
