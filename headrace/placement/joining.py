"""Instances that come from other machines: how many are awaited, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.errors import HeadraceError

_WORD = "join:"
MOST_JOINERS = 64


@dataclass(frozen=True, slots=True)
class Joining:
    """So many instances join at this address."""

    instances: int
    host: str
    port: int


def read_joining(words: Sequence[str]) -> Joining | None:
    """``join:N@HOST:PORT``; ``None`` for anything that does not begin with ``join:``. Raises ``invalid_setting``."""
    if not words or not words[0].strip().startswith(_WORD):
        return None
    count, _, address = words[0].strip()[len(_WORD) :].partition("@")
    if len(words) != 1 or not (count.isascii() and count.isdigit() and len(count) < 4) or not 1 <= int(count) <= MOST_JOINERS:
        raise _wrong(words[0])
    return Joining(int(count), *read_address(address))


def read_address(text: str) -> tuple[str, int]:
    """HOST:PORT, brackets around an IPv6 address. Raises ``invalid_setting``."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit() and len(port) < 6) or not 0 <= int(port) < 65_536:
        raise _wrong(text)
    return host, int(port)


def _wrong(text: str) -> HeadraceError:
    message = f"instances that join are written join:N@HOST:PORT with 1 to {MOST_JOINERS} of them, not {text[:64]!r}"
    return HeadraceError("invalid_setting", message, param="instances")
