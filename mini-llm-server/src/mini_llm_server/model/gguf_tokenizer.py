"""Builds SmolLM2's byte-level BPE tokenizer and chat template from a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mini_llm_server.model.backend_tokenizer import BackendTokenizer
from mini_llm_server.model.byte_level import bytes_of
from mini_llm_server.model.chat_template import ChatTemplate
from mini_llm_server.model.json_fields import Fields

_CONTROL = 3  # ggml's token type for tokens that are no text
# Ends of text by their usual names: the metadata names only the one that ends a chat turn, and a
# model that completes plain text ends a document with another.
_END_TOKENS = ("<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>")


def gguf_tokenizer(metadata: Mapping[str, Any]) -> BackendTokenizer:
    """Return the tokenizer.

    Args:
        metadata: a GGUF file's, with the keys tokenizer.ggml.*.

    Raises:
        ValueError: the file's tokenizer is of another kind, or broken.
    """
    fields = Fields(metadata, "the GGUF file")
    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"the tokenizer is of kind {kind}: only ('gpt2', 'smollm') is read")
    tokens: list[str] = fields.get("tokenizer.ggml.tokens", list)
    types: list[int] = fields.get("tokenizer.ggml.token_type", list)
    merges: list[str] = fields.get("tokenizer.ggml.merges", list)
    if not all(isinstance(each, str) for each in (*tokens, *merges)):
        raise ValueError("the tokenizer's tokens and merges have to be strings")
    if len(types) != len(tokens):
        raise ValueError(f"the tokenizer has {len(tokens)} tokens and {len(types)} token types")
    variables = {}
    for name in ("bos_token", "eos_token"):
        token_id = fields.get(f"tokenizer.ggml.{name}_id", int)
        if not 0 <= token_id < len(tokens):
            raise ValueError(f"the tokenizer's {name}_id is {token_id} of {len(tokens)} tokens")
        variables[name] = tokens[token_id]
    vocab = {token: i for i, token in enumerate(tokens)}
    special = {i for i, kind in enumerate(types) if kind == _CONTROL}
    ends = {vocab[name] for name in _END_TOKENS if vocab.get(name) in special}
    return BackendTokenizer(
        _backend(vocab, merges, [tokens[i] for i in special]),
        bytes_of,
        special=special,
        eos=ends | {vocab[variables["eos_token"]]},
        template=ChatTemplate(fields.get("tokenizer.chat_template", str), variables),
    )


def _backend(vocab: dict[str, int], merges: list[str], special: list[str]) -> Tokenizer:
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    try:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    except Exception as error:  # the package raises no narrower type
        raise ValueError(f"the tokenizer's merges are broken: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(each, special=True, normalized=False) for each in special]
    )
    return backend
