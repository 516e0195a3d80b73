"""What a server and the launcher of its Ray workers say to each other: one JSON object a line."""

from __future__ import annotations

import msgspec

MOST_BYTES = 1 << 16
"""Of one line."""


class Wanted(msgspec.Struct, tag="wanted", frozen=True, forbid_unknown_fields=True):
    """To the launcher, first: so many workers of so many threads (``None``: the cluster's, shared out).

    ``pool_mib``: memory that each keeps for its pages, which Ray counts. ``cluster``: the address of one that runs; empty: what
    ``RAY_ADDRESS`` names, else one of this machine alone, started now.
    """

    cluster: str
    instances: int
    threads: int | None
    pool_mib: int | None = None


class Node(msgspec.Struct, tag="node", frozen=True, forbid_unknown_fields=True):
    """The cluster has kept room for the workers, who reach this machine at ``host``; each will have ``threads``."""

    host: str
    threads: int


class Door(msgspec.Struct, tag="door", frozen=True, forbid_unknown_fields=True):
    """To the launcher: where the server takes workers now, and the key that they prove. They are started then."""

    port: int
    key: bytes


class Began(msgspec.Struct, tag="began", frozen=True, forbid_unknown_fields=True):
    """A worker has a place: the address of its node, and its process there."""

    worker: int
    node: str
    pid: int


class Ended(msgspec.Struct, tag="ended", frozen=True, forbid_unknown_fields=True):
    """A worker has ended; another is asked for after ``wait`` seconds."""

    worker: int
    reason: str
    wait: float


class Unplaced(msgspec.Struct, tag="unplaced", frozen=True, forbid_unknown_fields=True):
    """The launcher's last words: the cluster can't be had, or has no room."""

    reason: str


FromLauncher = Node | Began | Ended | Unplaced
