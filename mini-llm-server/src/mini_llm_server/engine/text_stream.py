"""Turns the bytes of sampled tokens into text that is final: whole characters, no stop string.

A byte-level token may end in the middle of a UTF-8 character, and a stop string may be spread
over several tokens, so some text has to wait until the next tokens decide about it.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one answer as it grows.

    Args:
        stop: strings that end it; the earliest one in the text counts.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def push(self, data: bytes) -> str:
        """Add a token's bytes; return the text that became final.

        When a stop string is complete, `stopped` is set, and what came before it is returned.
        """
        return self._release(self._held + self._decoder.decode(data))

    def finish(self) -> str:
        """Return what was held back: no more tokens follow.

        Bytes of an unfinished character become U+FFFD, as they do in a decode of the whole.
        """
        text = self._release(self._held + self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        split = len(text) - keep
        self._held = text[split:]
        return text[:split]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
