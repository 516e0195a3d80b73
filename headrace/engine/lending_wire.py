"""Messages about memory that engines of several models lend each other."""

from __future__ import annotations

import msgspec


class Lending(msgspec.Struct, frozen=True):
    """An engine's pool is one of several in a common budget: bytes that it may have at ``most``, and has at ``first``.

    What its settings name is its own: a request may need as much, and gets it, if it has to wait for it.
    """

    most: int
    first: int


class Allow(msgspec.Struct, tag="allow", frozen=True):
    """From now on the pages in use may take so many bytes. Gauges show when that is so: what requests hold comes free with them."""

    bytes: int
