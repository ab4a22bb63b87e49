"""Reads a model folder's tokenizer.json, and the chat template and special tokens beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mini_llm_server.model import byte_level
from mini_llm_server.model.backend_tokenizer import BackendTokenizer
from mini_llm_server.model.chat_template import ChatTemplate
from mini_llm_server.model.json_fields import MOST_JSON_BYTES, read_json

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def folder_tokenizer(folder: Path) -> BackendTokenizer:
    """Return the tokenizer of a model's folder.

    Raises:
        FileNotFoundError: there is no tokenizer.json.
        ValueError: a file is broken, or the tokenizer is of a kind that is not supported.
    """
    path = folder / "tokenizer.json"
    described = read_json(path)
    backend = _backend(path)
    # A prompt is refused when it is too long, never cut in silence.
    backend.no_truncation()
    backend.no_padding()
    added = backend.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    settings = _optional_json(folder / "tokenizer_config.json")
    variables = _token_names(settings)
    eos = set(_eos_token_ids(folder))
    if (named := backend.token_to_id(variables.get("eos_token", ""))) is not None:
        eos.add(named)
    return BackendTokenizer(
        backend,
        _spelling(described, path),
        literal=added.keys() - special,
        special=special,
        eos=eos,
        template=_template(folder, settings, variables),
    )


def _backend(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # its parser may panic, which is no Exception in Python
        raise ValueError(f"{path} is no tokenizer that can be read: {error}") from error


def _spelling(described: dict[str, Any], path: Path) -> Callable[[str], bytes]:
    """Return the function from a token's spelling to its bytes, by what the decoder is."""
    kinds = set(_decoder_kinds(described.get("decoder")))
    if "ByteLevel" in kinds:
        return byte_level.bytes_of
    if kinds & {"ByteFallback", "Metaspace"}:
        return _sentencepiece_bytes
    raise ValueError(
        f"{path}: its decoder is {sorted(kinds) or None}, and supported are ByteLevel (as GPT-2, "
        "Llama 3 and Qwen have it) and Metaspace with ByteFallback (Llama 2)"
    )


def _decoder_kinds(decoder: Any) -> Iterator[str]:
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for each in decoder.get("decoders") or ():
            yield from _decoder_kinds(each)


def _sentencepiece_bytes(token: str) -> bytes:
    """SentencePiece's spelling: U+2581 is a space, and <0x0A> the byte 0A."""
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace("\u2581", " ").encode()


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _token_names(settings: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens that templates may use, by their role."""
    names = {}
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(role)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[role] = value
    return names


def _eos_token_ids(folder: Path) -> Iterator[int]:
    """Yield what config.json and generation_config.json say: one id or a list of them."""
    for name in ("config.json", "generation_config.json"):
        value = _optional_json(folder / name).get("eos_token_id")
        for each in value if isinstance(value, list) else [value]:
            if each is not None and type(each) is not int:
                raise ValueError(f"{folder / name}: eos_token_id is {each!r}: it has to be int")
            if each is not None:
                yield each


def _template(
    folder: Path, settings: dict[str, Any], variables: dict[str, str]
) -> ChatTemplate | None:
    """Return the chat template, from a file of its own or from the tokenizer's settings."""
    path = folder / "chat_template.jinja"
    source = settings.get("chat_template")
    if path.is_file():
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"{path} is too large for a template")
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text: {error}") from error
    if isinstance(source, list):  # several by name
        named = {
            each.get("name"): each.get("template") for each in source if isinstance(each, dict)
        }
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ValueError(f"{folder}: chat_template is {json.dumps(source)[:60]}: it has to be text")
    return ChatTemplate(source, variables)
