"""Find the markers in a Markdown file, outside of code, with their attributes."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from .selection import MarkerError

BEGIN = re.compile(r"<!--\s*bench:(?P<kind>\S+)(?P<attributes>.*?)-->", re.S)
END = re.compile(r"<!--\s*/bench\s*-->")
FENCE = re.compile(
    r"^ {0,3}(?P<mark>`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}(?P=mark)[^\n]*$|\Z)", re.S | re.M
)
INLINE = re.compile(r"(?<!`)(?P<ticks>`+)(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`)")


@dataclass(frozen=True)
class Marker:
    """One marker: what it asks for, and where its content starts and ends in the text."""

    kind: str
    attributes: dict[str, str]
    line: int
    begin: int  # of the opening comment
    start: int  # of the content
    end: int

    def take(self, *needed: str, **optional: str) -> dict[str, str]:
        """Return its attributes with defaults; MarkerError where one is missing or unknown."""
        missing = [name for name in needed if name not in self.attributes]
        known = {*needed, *optional}
        unknown = sorted(self.attributes.keys() - known)
        if missing or unknown:
            raise MarkerError(
                f"bench:{self.kind} has missing attributes {missing}, unknown {unknown}; "
                f"it takes {sorted(known)}"
            )
        return {**optional, **self.attributes}


def find(text: str) -> list[Marker]:
    """Return the markers in order; MarkerError with a line number where one is malformed."""
    code = [match.span() for match in FENCE.finditer(text)]
    code += [
        match.span()
        for match in INLINE.finditer(text)
        if not any(start <= match.start() < end for start, end in code)
    ]

    def in_code(position: int) -> bool:
        return any(start <= position < end for start, end in code)

    markers: list[Marker] = []
    at = 0
    for opening in BEGIN.finditer(text):
        if in_code(opening.start()):
            continue
        line = text.count("\n", 0, opening.start()) + 1
        if opening.start() < at:
            raise MarkerError(f"line {line}: a marker begins inside another: is a /bench missing?")
        closing = next(
            (e for e in END.finditer(text, opening.end()) if not in_code(e.start())), None
        )
        if closing is None:
            raise MarkerError(
                f"line {line}: bench:{opening['kind']} has no <!-- /bench --> after it"
            )
        markers.append(
            Marker(
                opening["kind"],
                _attributes(opening["attributes"], line),
                line,
                opening.start(),
                opening.end(),
                closing.start(),
            )
        )
        at = closing.end()
    return markers


def _attributes(text: str, line: int) -> dict[str, str]:
    try:
        words = shlex.split(text)
    except ValueError as fault:
        raise MarkerError(f"line {line}: {fault} in {text.strip()!r}") from None
    pairs = [word.partition("=") for word in words]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise MarkerError(f'line {line}: {wrong} should read name=value or name="value"')
    return {name: value for name, _, value in pairs}
