"""GPT-2's spelling of bytes as characters that print, in which byte-level vocabularies are kept."""

from __future__ import annotations


def _byte_of_char() -> dict[str, int]:
    """Return the spelling, read backwards.

    Bytes that print as Latin-1 stand for themselves, the others for U+0100 and up in their order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_of_char()


def bytes_of(token: str) -> bytes:
    """Return the bytes that a token of a byte-level vocabulary stands for.

    A token with a character that spells no byte stands for itself: some vocabularies hold a few.
    """
    try:
        return bytes(_BYTE_OF[char] for char in token)
    except KeyError:
        return token.encode(errors="replace")
