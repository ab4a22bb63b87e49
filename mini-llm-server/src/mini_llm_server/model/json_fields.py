"""Reads JSON files that somebody else wrote: each value is checked, and each error names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MOST_JSON_BYTES = 256 * 2**20  # a tokenizer.json of 10^6 tokens and their merges is far below it


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, no object, or too large to be what it should be.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    if path.stat().st_size > MOST_JSON_BYTES:
        raise ValueError(f"{path} is larger than {MOST_JSON_BYTES} bytes: no such file is")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError as well
        raise ValueError(f"{path} is no JSON (is it cut off?): {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} has to hold a JSON object, and it holds a {type(value).__name__}")
    return value


class Fields:
    """An object's values by type; null stands for an absent one."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return a value of this type.

        Raises:
            ValueError: it is of another type, or missing where there is no default.
        """
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise ValueError(f"{self.where} holds no {name}")
            return default
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 2**53 else value
        if type(value) is not kind:  # not isinstance: a bool is no number here
            shown = repr(value)[:60]
            raise ValueError(f"{self.where}: {name} is {shown}, and it has to be {kind.__name__}")
        return value

    def refuse_unless(self, name: str, *harmless: Any) -> None:
        """Refuse a setting that is not supported unless it is absent or one of these values.

        Raises:
            ValueError: naming it.
        """
        value = self.values.get(name)
        if value is not None and value not in harmless:
            shown = repr(value)[:60]
            raise ValueError(f"{self.where}: {name} is {shown}, which is not supported here")
