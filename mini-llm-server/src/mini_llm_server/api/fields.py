"""The types of request fields that have several spellings, each read into one form."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from mini_llm_server.api.limits import (
    LONGEST_STOP_STRING,
    LONGEST_STRUCTURE,
    MOST_LOGIT_BIASES,
    MOST_STOP_STRINGS,
)
from mini_llm_server.engine.sampling_params import MAX_LOGIT_BIAS, Structure

Prompt = str | list[int]


def _as_prompts(value: Any) -> list[Prompt]:
    """Return a prompt in any of its four forms as a list of texts or lists of token ids."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and value:
        prompts: list[Prompt] = value
        if all(isinstance(each, str) for each in value):
            _check_texts(value)
            return prompts
        if _is_tokens(value):
            return [value]
        if all(isinstance(each, list) and _is_tokens(each) for each in value):
            return prompts
    raise ValueError(
        "it has to be a text, a list of texts, a list of token ids or a list of such lists"
    )


def _check_texts(texts: list[str]) -> None:
    """Refuse half of a surrogate pair, which JSON can spell ("\\ud83d") and UTF-8 cannot."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start : error.end]
            raise ValueError(f"it holds half a character: {half!r}") from None


def _is_tokens(value: list[Any]) -> bool:
    return all(type(each) is int for each in value)


def _as_stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise ValueError("it has to be a text or a list of texts")
    if len(stops) > MOST_STOP_STRINGS:
        raise ValueError(f"it holds {len(stops)} texts, and at most {MOST_STOP_STRINGS} are taken")
    _check_texts(stops)
    if not all(stops):
        raise ValueError("an empty text would end every answer at once: leave it out")
    if (longest := max(map(len, stops), default=0)) > LONGEST_STOP_STRING:
        raise ValueError(
            f"it holds a text of {longest} characters, and at most {LONGEST_STOP_STRING} are taken"
        )
    return tuple(stops)


def _as_text(value: Any) -> str:
    """Return a message's content: a text, or the texts of a list of text parts, joined."""
    if isinstance(value, str):
        _check_texts([value])
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("it has to be a text or a list of text parts")
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ValueError(f"part {i} is of type {kind!r}, and only 'text' is supported")
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError(f"part {i} has to be {{'type': 'text', 'text': '...'}}, no more")
    _check_texts([part["text"] for part in value])
    return "".join(part["text"] for part in value)


def _as_biases(value: Any) -> dict[int, float]:
    """Return {token id: bias} of an object whose keys are token ids as text."""
    if not isinstance(value, dict):
        raise ValueError("it has to be an object from token ids to numbers")
    if len(value) > MOST_LOGIT_BIASES:
        raise ValueError(f"it has {len(value)} entries, and at most {MOST_LOGIT_BIASES} are taken")
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise ValueError(f"{token[:20]!r} is no token id")
        if type(bias) not in (int, float) or not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
            raise ValueError(f"the bias of token {token} has to be a number from -100 to 100")
    return {int(token): float(bias) for token, bias in value.items()}


def _as_structure(value: Any) -> Structure | None:
    """Return what an answer has to look like; None for {"type": "text"}.

    OpenAI's types, and "regex" with the expression under "value", as text-generation-inference
    spells it.
    """
    if not isinstance(value, dict):
        raise ValueError("it has to be an object with a type")
    kind = value.get("type")
    match kind:
        case "text" | "json_object":
            _only(value, "type")
            return None if kind == "text" else Structure("json_object")
        case "json_schema":
            _only(value, "type", "json_schema")
            inner = value.get("json_schema")
            if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
                raise ValueError("json_schema has to be an object with a name and a schema")
            _only(inner, "name", "schema", "strict")
            if not isinstance(inner.get("name"), str):
                raise ValueError("json_schema needs a name, which is a text")
            if not isinstance(inner.get("strict"), bool | None):  # held to the schema either way
                raise ValueError("json_schema's strict has to be true or false")
            try:
                schema = json.dumps(inner["schema"])
            except RecursionError:
                raise ValueError("the schema is nested too deeply") from None
            return Structure("json_schema", _bounded(schema))
        case "regex":
            _only(value, "type", "value")
            if not isinstance(value.get("value"), str) or not value["value"]:
                raise ValueError("the expression has to be a text under 'value'")
            _check_texts([value["value"]])
            return Structure("regex", _bounded(value["value"]))
    raise ValueError(f"type is {kind!r}: supported are text, json_object, json_schema and regex")


def _only(value: dict[str, Any], *names: str) -> None:
    if extra := sorted(value.keys() - {*names}):
        raise ValueError(f"{extra[0]} is not supported here: leave it out")


def _bounded(spec: str) -> str:
    if len(spec) > LONGEST_STRUCTURE:
        raise ValueError(
            f"it has {len(spec)} characters, and at most {LONGEST_STRUCTURE} are taken"
        )
    return spec


_TEXT = {"type": "string"}
_TOKENS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_PROMPT = {
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}
_STOP_TEXT = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP_STRING}
_STOP = {
    "anyOf": [
        _STOP_TEXT,
        {"type": "array", "items": _STOP_TEXT, "maxItems": MOST_STOP_STRINGS},
    ]
}
_CONTENT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_CONTENT = {"anyOf": [_TEXT, {"type": "array", "items": _CONTENT_PART, "minItems": 1}]}
_BIASES = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": {
        "type": "number",
        "minimum": -MAX_LOGIT_BIAS,
        "maximum": MAX_LOGIT_BIAS,
    },
    "maxProperties": MOST_LOGIT_BIASES,
}


def _response_format(kind: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": kind}, **properties},
        "required": ["type", *properties],
        "additionalProperties": False,
    }


_NAMED_SCHEMA = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "schema": {"type": "object"},
        "strict": {"type": ["boolean", "null"]},
    },
    "required": ["name", "schema"],
    "additionalProperties": False,
}
_STRUCTURE = {
    "anyOf": [
        _response_format("text"),
        _response_format("json_object"),
        _response_format("json_schema", json_schema=_NAMED_SCHEMA),
        _response_format("regex", value={"type": "string", "minLength": 1}),
    ]
}

Prompts = Annotated[list[Prompt], PlainValidator(_as_prompts), WithJsonSchema(_PROMPT)]
Stops = Annotated[tuple[str, ...], BeforeValidator(_as_stops), WithJsonSchema(_STOP)]
Text = Annotated[str, BeforeValidator(_as_text), WithJsonSchema(_CONTENT)]
Biases = Annotated[dict[int, float], PlainValidator(_as_biases), WithJsonSchema(_BIASES)]
ResponseFormat = Annotated[
    Structure | None, PlainValidator(_as_structure), WithJsonSchema(_STRUCTURE)
]
