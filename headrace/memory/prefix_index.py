"""Which pages hold which beginnings of token sequences, so that a prompt seen before is not computed again."""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator, Sequence

from headrace.memory.page_pool import PagePool

_FEW_ROOTS = 64  # roots that may stand without pages before they are looked for
_PIECE = 32  # pages packed at first: a prompt that differs early is not packed to its end


class KnownRun:
    """Full pages that follow each other with no branch between them: a node of the tree.

    ``tokens``: those of all its ``pages`` as 32-bit numbers. ``children`` are found by the tokens of their first page. The root of
    a tenant has no pages.
    """

    __slots__ = ("children", "pages", "parent", "tokens")

    def __init__(self, pages: list[int], tokens: bytearray, parent: KnownRun | None) -> None:
        self.pages = pages
        self.tokens = tokens
        self.parent = parent
        self.children: dict[bytes, KnownRun] | None = None


class PrefixIndex:
    """A tree of full pages: one root a tenant, runs of pages between branches, found by the tokens themselves.

    A hit compares all tokens from the first on (dictionary keys are compared and never trusted by their hash), and tenants
    have different roots, so that no sequence can ever reach pages of another one. The idea is that of hash chains over
    blocks ("Efficient Memory Management for Large Language Model Serving with PagedAttention") in the radix tree of
    "SGLang: Efficient Execution of Structured Language Model Programs" (RadixAttention): a whole prompt is one node until
    another one branches off, so that looking it up is one comparison of bytes and entering it makes one object.

    Whoever grows a sequence holds all pages above its newest one (:meth:`add` sees to that), so that pages without owners are
    branches down to their ends, which the pool forgets from the ends on. Where a page goes before what hangs on it (because a
    move still holds that), the whole branch goes: nothing is ever known that can't be reached.
    """

    __slots__ = ("_most_roots", "_pool", "_roots", "_size", "evictions", "known")

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._size = 4 * pool.page_tokens
        self._roots: dict[Hashable, KnownRun] = {}
        self._most_roots = _FEW_ROOTS
        self.known: list[KnownRun | None] = [None] * pool.total
        self.evictions = 0
        pool.on_forget = self._forget

    def find(self, tenant: Hashable, tokens: Sequence[int], most: int) -> list[int]:
        """Pages of the longest known beginning of ``tokens`` in full pages, at most ``most`` of them, in order."""
        found: list[int] = []
        node, size = self._roots.get(tenant), self._size
        if node is None or node.children is None:
            return found
        packed = min(most, _PIECE)
        data = self.pack(tokens, 0, packed)
        at = 0
        while at < most and node.children is not None:
            if at == packed:
                packed = min(most, 2 * packed)
                data += self.pack(tokens, at, packed)
            node = node.children.get(data[at * size : (at + 1) * size])
            if node is None:
                break
            end = min(most, at + len(node.pages))
            if end > packed:
                data += self.pack(tokens, packed, end)
                packed = end
            same = self._same(node, 0, data[at * size : end * size])
            found += node.pages[:same]
            at += same
            if same < len(node.pages):
                break
        return found

    def add(self, tenant: Hashable, tokens: Sequence[int], pages: list[int], first: int, stop: int) -> None:
        """Make the full pages ``first`` … ``stop`` − 1 of the table ``pages`` of a tenant's ``tokens`` known.

        Those before ``first`` must be known and held. A page that is known already, because another sequence was quicker,
        takes its copy's place in the table: both hold the same bits.
        """
        size = self._size
        data = self.pack(tokens, first, stop)
        node, at = self._place(tenant, pages[first - 1] if first else None)
        index = first
        while index < stop:
            rest = data[(index - first) * size :]
            if at < len(node.pages):
                same = self._same(node, at, rest)
                self._take_over(node.pages[at : at + same], pages, index)
                at, index = at + same, index + same
                if index < stop and at < len(node.pages):
                    self._split(node, at)
                continue
            child = node.children.get(rest[:size]) if node.children is not None else None
            if child is None:
                self._grow(node, pages[index:stop], rest)
                return
            node, at = child, 0

    def spell(self, page: int) -> tuple[list[int], bytes]:
        """(pages, their tokens packed) of the sequence that a known page ends, from its first page on."""
        node = self.known[page]
        assert node is not None, "the page is known"
        at = node.pages.index(page) + 1
        pages, tokens = node.pages[:at], bytes(node.tokens[: at * self._size])
        while (above := node.parent) is not None:
            node = above
            pages, tokens = node.pages + pages, bytes(node.tokens) + tokens
        return pages, tokens

    def pack(self, tokens: Sequence[int], first: int, stop: int) -> bytes:
        """The tokens of pages ``first`` … ``stop`` − 1 as little-endian 32-bit numbers."""
        size = self._pool.page_tokens
        piece = tokens[first * size : stop * size]
        return struct.pack(f"<{len(piece)}i", *piece)

    def check_integrity(self) -> None:
        """Prove that the tree, the pool and each other's pages agree. Raises ``AssertionError``. O(pages)."""
        pool = self._pool
        cached = set(pool.cached_pages())
        reached = 0
        for node in self._walk():
            reached += len(node.pages)
            _require(len(node.tokens) == len(node.pages) * self._size, "a run has more tokens or less than its pages")
            _require(bool(node.pages) == (node.parent is not None), "a run is empty, or a root is not")
            for page in node.pages:
                _require(self.known[page] is node, f"page {page} is in the tree twice")
                _require(pool.references(page) > 0 or page in cached, f"page {page} is in the tree and blank")
            for key, child in (node.children or {}).items():
                _require(child.parent is node and child.tokens.startswith(key), "a branch hangs in the wrong place")
        _require(reached == sum(node is not None for node in self.known), "a known page hangs on no tenant")
        _require(all(self.known[page] is not None for page in cached), "a cached page is not in the tree")

    def _place(self, tenant: Hashable, page: int | None) -> tuple[KnownRun, int]:
        """(run, pages of it up to and with ``page``) behind which a sequence goes on."""
        if page is None:
            root = self._roots.get(tenant)
            if root is None:
                self._drop_empty_roots()
                root = self._roots[tenant] = KnownRun([], bytearray(), None)
            return root, 0
        node = self.known[page]
        assert node is not None, "what a sequence grows from is known"
        return node, len(node.pages) if node.pages[-1] == page else node.pages.index(page) + 1

    def _drop_empty_roots(self) -> None:
        """Names may be many (each scale of an adapter is one): those that lead to nothing any more are dropped now and then."""
        if len(self._roots) >= self._most_roots:
            self._roots = {name: root for name, root in self._roots.items() if root.children is not None}
            self._most_roots = 2 * len(self._roots) + _FEW_ROOTS

    def _same(self, node: KnownRun, at: int, data: bytes) -> int:
        """Pages of a run, from ``at`` on, that begin ``data``."""
        size, tokens = self._size, node.tokens
        count = min(len(node.pages) - at, len(data) // size)
        if tokens.startswith(data[: count * size], at * size):
            return count
        low = 0  # so many are alike; halved, because whole comparisons are the cheap thing
        while count - low > 1:
            middle = (low + count) // 2
            if tokens.startswith(data[low * size : middle * size], (at + low) * size):
                low = middle
            else:
                count = middle
        return low

    def _take_over(self, known: list[int], pages: list[int], index: int) -> None:
        for offset, page in enumerate(known, index):
            if pages[offset] != page:
                self._pool.share((page,))
                self._pool.release((pages[offset],))
                pages[offset] = page

    def _split(self, node: KnownRun, at: int) -> None:
        """A sequence branches off behind the first ``at`` pages of a run: the others hang on them from now on."""
        cut = at * self._size
        lower = KnownRun(node.pages[at:], node.tokens[cut:], node)
        lower.children = node.children
        for child in (node.children or {}).values():
            child.parent = lower
        for page in lower.pages:
            self.known[page] = lower
        del node.pages[at:], node.tokens[cut:]
        node.children = {bytes(lower.tokens[: self._size]): lower}

    def _grow(self, node: KnownRun, pages: list[int], data: bytes) -> None:
        """Let new pages follow a run: as its continuation when nothing else does, else as a branch."""
        if node.parent is None or node.children is not None:
            below = KnownRun(pages, bytearray(data), node)
            if node.children is None:
                node.children = {}
            node.children[data[: self._size]] = below
            node = below
        else:
            node.pages += pages
            node.tokens += data
        known = self.known
        for page in pages:
            known[page] = node
        self._pool.keep(pages)

    def _forget(self, page: int) -> None:
        node = self.known[page]
        assert node is not None, "a cached page is known"
        at = len(node.pages) - 1 if node.pages[-1] == page else node.pages.index(page)
        gone = node.pages[at:]
        below = list(node.children.values()) if node.children is not None else []
        node.children = None
        parent = node.parent
        if at == 0 and parent is not None and parent.children is not None:
            del parent.children[bytes(node.tokens[: self._size])]
            parent.children = parent.children or None
        del node.pages[at:], node.tokens[at * self._size :]
        while below:
            branch = below.pop()
            gone += branch.pages
            below += (branch.children or {}).values()
        for lost in gone:
            self.known[lost] = None
            self._pool.forget(lost)
        self.evictions += len(gone)

    def _walk(self) -> Iterator[KnownRun]:
        below = list(self._roots.values())
        while below:
            node = below.pop()
            yield node
            below += (node.children or {}).values()


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise AssertionError(problem)
