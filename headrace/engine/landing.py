"""The pages of a request that is expected: filled by the thread that takes them, given up by the engine's own."""

from __future__ import annotations

import threading
from collections.abc import Collection

from headrace.kernels.interface import Bytes


class PageLanding:
    """Copies what arrives into the pages of a lease, until :meth:`close`: then no page is touched any more.

    The first ``known`` of them are there already, and others may read them: they are never written. ``problem``: why nothing more
    will come.
    """

    def __init__(self, pool: Bytes, pages: list[int], known: int = 0) -> None:
        self.problem: str | None = None
        self._pool = pool
        self._pages = pages
        self._known = known
        self._landed = set(range(known))
        self._open = True
        self._lock = threading.Lock()

    def put(self, number: int, page: Bytes) -> bool:
        """Take page ``number`` of the move; False when none is wanted any more."""
        with self._lock:
            if not self._open:
                return False
            if not self._known <= number < len(self._pages):
                self.problem = f"page {number} of {len(self._pages)} came, of which {self._known} were here"
                return False
            target = self._pool[self._pages[number]]
            target[...] = page.reshape(target.shape)
            self._landed.add(number)
            return True

    def fail(self, problem: str) -> None:
        """Nothing more will come."""
        with self._lock:
            self.problem = self.problem or problem

    def has(self, numbers: Collection[int]) -> bool:
        """True when all of these have landed."""
        with self._lock:
            return self._landed.issuperset(numbers)

    def close(self) -> None:
        """When this returns the pages are the caller's alone."""
        with self._lock:
            self._open = False
