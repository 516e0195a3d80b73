"""A look over a JSON body before it is decoded: nesting depth and number of values, chunk by chunk as it arrives."""

from __future__ import annotations

import numpy as np

from headrace.errors import HeadraceError
from headrace.server.protocol.limits import MAX_JSON_WORK

_QUOTE = ord('"')
_DEPTH = np.zeros(256, dtype=np.int32)
_DEPTH[[ord("["), ord("{")]] = 1
_DEPTH[[ord("]"), ord("}")]] = -1
_WORK = np.zeros(256, dtype=np.int32)
_WORK[[ord("["), ord("{")]] = 10
_WORK[ord(",")] = 1
_SLICE = 1 << 16


class JsonScan:
    """Counts brackets and commas outside strings. Decoding holds the interpreter, so its size is bounded before it starts.

    Costs a few passes over the bytes and remembers only whether a string is open, an escape is half seen, and the depth.
    """

    def __init__(self, max_depth: int, max_work: int = MAX_JSON_WORK) -> None:
        self._max_depth = max_depth
        self._max_work = max_work
        self._depth = 0
        self._work = 0
        self._in_string = False
        self._carry = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises ``invalid_value`` when the body nests too deeply or has too many values."""
        for start in range(0, len(data), _SLICE):
            self._feed(data[start : start + _SLICE])

    def _feed(self, data: bytes) -> None:
        data = self._carry + data
        trailing = len(data) - len(data.rstrip(b"\\"))
        self._carry = b"\\" if trailing % 2 else b""
        if self._carry:
            data = data[:-1]
        if b"\\" in data:
            data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
        codes = np.frombuffer(data, dtype=np.uint8)
        quotes = np.cumsum(codes == _QUOTE, dtype=np.int32)
        outside = ((quotes + self._in_string) & 1) == 0
        depths = np.cumsum(np.where(outside, _DEPTH[codes], 0), dtype=np.int32)
        self._work += int(np.where(outside, _WORK[codes], 0).sum())
        if len(codes):
            deepest = self._depth + int(depths.max())
            self._depth += int(depths[-1])
            self._in_string = bool((int(quotes[-1]) + self._in_string) & 1)
            if deepest > self._max_depth:
                raise HeadraceError("invalid_value", f"The body nests deeper than {self._max_depth} levels.")
        if self._work > self._max_work:
            raise HeadraceError(
                "invalid_value",
                f"The body has too many values (more than {self._max_work:,} list entries, or a tenth as many objects).",
            )
