"""Kept pages and their files against a plain dict: whatever is found is what was said, whatever dies and rots."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.memory.arena import Arena
from headrace.memory.kept_file import KeptFile
from headrace.memory.kept_pages import KeptPages, KeptPiece
from headrace.memory.page_pool import PagePool
from headrace.memory.prefix_index import PrefixIndex

SIZE, PAGES, SLOTS, BYTES = 2, 40, 24, 4096
Talk = tuple[str, tuple[int, ...]]


class _Killed(Exception):
    """The process ends here."""


class MortalFile(KeptFile):
    """Dies at the ``deadline``-th write to either file, in the middle of it."""

    deadline = -1

    def _dies(self) -> bool:
        self.deadline -= 1
        return self.deadline == 0

    def _put(self, slot: int, rows: np.ndarray) -> None:
        if self._dies():
            super()._put(slot, rows[: len(rows) // 2])
            raise _Killed
        super()._put(slot, rows)

    def _carry(self, call: Any, view: memoryview, offset: int) -> None:
        if self._dies():
            if len(view) > BYTES:
                super()._carry(call, view[:BYTES], offset)
            raise _Killed
        super()._carry(call, view, offset)


def content(talk: Talk) -> bytes:
    """What the page behind these tokens holds: nothing else decides it."""
    return hashlib.blake2b(repr(talk).encode()).digest() * (BYTES // 64)


class KeptPagesMachine(RuleBasedStateMachine):
    """The model is a dict from what was said to the bytes of its last page."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.said: dict[Talk, bytes] = {}
        self.arena = Arena(PAGES, BYTES)
        self.owners = 0

    @initialize()
    def start(self) -> None:
        self.pool = PagePool(PAGES, SIZE)
        self.index = PrefixIndex(self.pool)
        self.kept = KeptPages(self.index, self.pool, SLOTS, run_pages=3)
        self.file = MortalFile(self.arena, (self.folder, "a-1"), SLOTS, SIZE)
        self.kept.restore(self.file.entries())
        self.arena.bytes[...] = 0xEE  # what a process that died had in its pool is gone

    @rule(
        tenant=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 2), min_size=SIZE, max_size=8 * SIZE),
        whole=st.booleans(), cut=st.integers(1, 8),
    )  # fmt: skip
    def say(self, tenant: str, tokens: list[int], whole: bool, cut: int) -> None:
        """A sequence fills pages, is put in line on its way (``cut``) or at its end (``whole``), and lets its pages go."""
        full = len(tokens) // SIZE
        found = self.index.find(tenant, tokens, full)
        self.pool.share(found)
        fresh = self.pool.allocate(full - len(found))
        if fresh is None:
            self.pool.release(found)
            return
        pages = [*found, *fresh]
        for number, page in enumerate(pages):
            talk = tenant, tuple(tokens[: (number + 1) * SIZE])
            if number >= len(found):
                self.arena.bytes[page] = np.frombuffer(content(talk), np.uint8)
            self.said[talk] = content(talk)
            assert self.arena.bytes[page].tobytes() == self.said[talk]
        self.index.add(tenant, tokens, pages, len(found), full)
        if not whole and cut <= full:
            self.kept.grown(tenant, pages[cut - 1])
        if whole:
            self.kept.ended(tenant, pages)
        self.pool.release(pages)

    @rule(most=st.integers(1, 9), fails=st.booleans(), deadline=st.integers(0, 12))
    def carry(self, most: int, fails: bool, deadline: int) -> None:
        """Carry what may be carried; perhaps a piece fails, perhaps the process dies at some write."""
        pieces = self.kept.issue(most)
        self.file.describe(pieces)
        self.file.deadline = deadline or -1
        for number, piece in enumerate(pieces):
            bad = fails and number == 0
            try:
                carried = not bad and self._carry(piece)
            except _Killed:
                self._die()
                return
            self.kept.done(piece, carried=carried)
            if carried and piece.writes:
                assert {entry.name for entry in piece.entries} <= self.kept._by_name.keys(), "what was written is known"
        self.file.deadline = -1

    def _carry(self, piece: KeptPiece) -> bool:
        try:
            (self.file.write if piece.writes else self.file.read)(piece.page, piece.slot, piece.count)
        except OSError:  # a damaged page
            return False
        return True

    @rule(tenant=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 2), min_size=SIZE, max_size=8 * SIZE))
    def look_up(self, tenant: str, tokens: list[int]) -> None:
        """All pages that a prompt finds on the disk hold what was said behind them."""
        full = len(tokens) // SIZE
        self.owners += 1
        slots = self.kept.find(self.owners, tenant, tokens, 0, full)
        assert all((tenant, tuple(tokens[: (number + 1) * SIZE])) in self.said for number in range(len(slots)))
        fresh = self.pool.allocate(len(slots)) if slots else None
        if fresh is None:
            return
        self.kept.come(self.owners, [], fresh, slots)
        while self.kept.coming(self.owners) and not self.kept.arrived:
            for piece in self.kept.issue(PAGES):
                self.kept.done(piece, carried=self._carry(piece))
        (job,) = self.kept.arrived
        self.kept.arrived.clear()
        for number, page in enumerate(job.pages[: job.good]):
            talk = tenant, tuple(tokens[: (number + 1) * SIZE])
            assert self.arena.bytes[page].tobytes() == self.said[talk]
        self.pool.release(job.pages)

    @rule(
        which=st.sampled_from(["table", "pages"]), places=st.lists(st.floats(0, 0.999), min_size=1, max_size=4), cut=st.booleans()
    )
    def die_and_rot(self, which: str, places: list[float], cut: bool) -> None:
        """The process is killed; bits of a file change, or it loses its end."""
        path = self.folder / f"a-1.{which}"
        self.file.close()
        data = bytearray(path.read_bytes())
        for place in places if data else ():
            data[int(place * len(data))] ^= 1 << (int(place * 97) % 8)
        path.write_bytes(data[: int(places[0] * len(data))] if cut else data)
        self.start()

    @precondition(lambda self: not self.kept.busy)
    @rule()
    def restart(self) -> None:
        """A clean end loses nothing."""
        before = {(entry.name, entry.tokens, entry.slot) for entry in self.kept._by_slot.values()}
        self._die()
        after = {(entry.name, entry.tokens, entry.slot) for entry in self.kept._by_slot.values()}
        assert before <= after

    def _die(self) -> None:
        self.file.close()
        self.start()

    @invariant()
    def adds_up(self) -> None:
        self.kept.check_integrity()
        self.index.check_integrity()
        self.pool.check_integrity(list(self.kept.holders()))

    def teardown(self) -> None:
        self.file.close()
        self.arena.close()
        shutil.rmtree(self.folder)


TestKeptPages = KeptPagesMachine.TestCase
TestKeptPages.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
