"""Which pages hold which beginnings of token sequences, so that a prompt seen before is not computed again."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence

from headrace.memory.page_pool import PagePool

_PIECE = 32  # pages looked up at a time: a prompt that differs early is not packed to its end
NO_PAGE = -1


class KnownPage:
    """A full page in the index: the tokens it holds and the page before it; ``page`` −1 stands before the first one.

    ``key``: the page's tokens as 32-bit numbers (of a tenant's root: the tenant's name).
    """

    __slots__ = ("_digest", "children", "key", "page", "parent")

    def __init__(self, page: int, key: bytes, parent: KnownPage | None) -> None:
        self.page = page
        self.key = key
        self.parent = parent
        self.children: dict[bytes, KnownPage] | None = None
        self._digest: bytes | None = None

    @property
    def digest(self) -> bytes:
        """16 bytes that name tenant and all tokens up to this page's end, in every process and for ever."""
        chain: list[KnownPage] = []
        node: KnownPage | None = self
        while node is not None and node._digest is None:
            chain.append(node)
            node = node.parent
        for link in reversed(chain):
            link._digest = chain_digest(link.parent._digest if link.parent is not None else None, link.key)
        assert self._digest is not None, "the chain ends at its root"
        return self._digest


def chain_digest(before: bytes | None, key: bytes) -> bytes:
    """The digest of a page from the digest of the page before it and its own tokens; of a root from the tenant's name."""
    kind = b"headrace tenant" if before is None else b"headrace page"
    return hashlib.blake2b((before or b"") + key, digest_size=16, person=kind).digest()


class PrefixIndex:
    """A tree of full pages: one root a tenant, one level a page, found page by page by the tokens themselves.

    A hit compares all tokens from the first on (dictionary keys are compared and never trusted by their hash), and tenants
    have different roots, so that no sequence can ever reach pages of another one. The idea is that of hash chains over
    blocks ("Efficient Memory Management for Large Language Model Serving with PagedAttention") in the tree form of
    "SGLang: Efficient Execution of Structured Language Model Programs" (RadixAttention).

    Whoever grows a sequence holds all pages above its newest one (:meth:`add` sees to that), so that pages without owners are
    branches down to their ends, which the pool forgets from the ends on. Where a page goes before what hangs on it (because a
    move still holds that), the whole branch goes: nothing is ever known that can't be reached.
    """

    __slots__ = ("_pool", "_roots", "evictions", "known")

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._roots: dict[str, KnownPage] = {}
        self.known: list[KnownPage | None] = [None] * pool.total
        self.evictions = 0
        pool.on_forget = self._forget

    def root(self, tenant: str) -> KnownPage:
        """What stands before the first page of a tenant's sequences."""
        root = self._roots.get(tenant)
        if root is None:
            root = self._roots[tenant] = KnownPage(NO_PAGE, tenant.encode(), None)
        return root

    def find(self, tenant: str, tokens: Sequence[int], most: int) -> list[KnownPage]:
        """The longest known beginning of ``tokens`` in full pages, at most ``most`` of them, in order."""
        found: list[KnownPage] = []
        node: KnownPage | None = self._roots.get(tenant)
        size = 4 * self._pool.page_tokens
        for first in range(0, most, _PIECE):
            data = self.pack(tokens, first, min(first + _PIECE, most))
            for start in range(0, len(data), size):
                if node is None or node.children is None:
                    return found
                node = node.children.get(data[start : start + size])
                if node is None:
                    return found
                found.append(node)
        return found

    def add(self, after: KnownPage, tokens: Sequence[int], pages: list[int], first: int, stop: int) -> KnownPage:
        """Make the full pages ``first`` … ``stop`` − 1 of the table ``pages`` of ``tokens`` known; returns the last one.

        ``after`` is the table's page before ``first``, or the tenant's root. A page that is known already, because another
        sequence was quicker, takes its copy's place in the table: both hold the same bits.
        """
        pool, known = self._pool, self.known
        size = 4 * pool.page_tokens
        data = self.pack(tokens, first, stop)
        node = after
        for index in range(first, stop):
            key = data[(index - first) * size : (index - first + 1) * size]
            page, children = pages[index], node.children
            if children is None:
                children = node.children = {}
            child = children.get(key)
            if child is None:
                child = children[key] = known[page] = KnownPage(page, key, node)
                pool.keep(page)
            elif child.page != page:
                pool.share((child.page,))
                pool.release((page,))
                pages[index] = child.page
            node = child
        return node

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
            reached += 1
            _require(self.known[node.page] is node, f"page {node.page} is in the tree twice")
            _require(pool.references(node.page) > 0 or node.page in cached, f"page {node.page} is in the tree and blank")
        _require(reached == sum(node is not None for node in self.known), "a known page hangs on no tenant")
        _require(all(self.known[page] is not None for page in cached), "a cached page is not in the tree")

    def _forget(self, page: int) -> None:
        node = self.known[page]
        assert node is not None, "a cached page is known"
        if node.parent is not None and node.parent.children is not None:
            del node.parent.children[node.key]
            if not node.parent.children:
                node.parent.children = None
        branch = [node]
        while branch:
            gone = branch.pop()
            if gone.children is not None:
                branch += gone.children.values()
                gone.children = None
            self.known[gone.page] = None
            self.evictions += 1
            self._pool.forget(gone.page)

    def _walk(self) -> Iterator[KnownPage]:
        below = list(self._roots.values())
        while below:
            node = below.pop()
            if node.page != NO_PAGE:
                yield node
            if node.children is not None:
                below += node.children.values()


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise AssertionError(problem)
