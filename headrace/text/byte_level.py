"""GPT-2's printable alphabet for bytes: how byte-level vocabularies spell their tokens."""

from __future__ import annotations

from functools import cache


@cache
def _alphabet() -> dict[str, int]:
    """Character to byte. Printable Latin-1 stands for itself, the other 68 bytes take U+0100 onwards in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(rest)})
    return table


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; characters outside the alphabet stand for their own UTF-8."""
    table = _alphabet()
    try:
        return bytes([table[char] for char in token])
    except KeyError:
        return b"".join(bytes([table[char]]) if char in table else char.encode("utf-8", "replace") for char in token)
