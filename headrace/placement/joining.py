"""Instances that come from other machines: how many are awaited, and where; or how many a cluster is to bring."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.errors import HeadraceError

_WORD = "join:"
_CLUSTER_WORD = "ray:"
_CLUSTER = re.compile(r"auto|[A-Za-z0-9.\[\]:_-]{1,255}")
MOST_JOINERS = 64


@dataclass(frozen=True, slots=True)
class Joining:
    """So many instances join at this address.

    ``cluster``: the address of the Ray cluster that brings them (empty: the one that Ray's own environment names, else one of this
    machine alone); ``None``: they are started by hand.
    """

    instances: int
    host: str
    port: int
    cluster: str | None = None


def read_joining(words: Sequence[str]) -> Joining | None:
    """``join:N@HOST:PORT`` or ``ray:N@ADDRESS`` (``ray:N``); ``None`` for anything else. Raises ``invalid_setting``."""
    first = words[0].strip() if words else ""
    word = next((word for word in (_WORD, _CLUSTER_WORD) if first.startswith(word)), None)
    if word is None:
        return None
    count, at, address = first[len(word) :].partition("@")
    if len(words) != 1 or not (count.isascii() and count.isdigit() and len(count) < 4) or not 1 <= int(count) <= MOST_JOINERS:
        raise _wrong(words[0])
    if word == _WORD:
        return Joining(int(count), *read_address(address))
    if at and not _CLUSTER.fullmatch(address):
        raise _wrong(words[0])
    return Joining(int(count), "", 0, cluster=address)


def read_address(text: str) -> tuple[str, int]:
    """HOST:PORT, brackets around an IPv6 address. Raises ``invalid_setting``."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit() and len(port) < 6) or not 0 <= int(port) < 65_536:
        raise _wrong(text)
    return host, int(port)


def _wrong(text: str) -> HeadraceError:
    message = (
        f"instances elsewhere are join:N@HOST:PORT, ray:N or ray:N@ADDRESS with 1 to {MOST_JOINERS} of them, not {text[:64]!r}"
    )
    return HeadraceError("invalid_setting", message, param="instances")
