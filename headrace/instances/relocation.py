"""The owner's side of moves: asks the source, the destination, and decides by one answer who has the request."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from headrace.engine.relocation_wire import (
    Adopt,
    Adopted,
    Departed,
    Expect,
    Expected,
    Leave,
    Leaving,
    Proceed,
    Release,
    RelocationNews,
    RequestState,
    Return,
    Stays,
)
from headrace.engine.wire import Submit
from headrace.instances.member import Member
from headrace.instances.owners import Owned

logger = logging.getLogger("headrace.instances.relocation")


class Phase(enum.Enum):
    """How far a move is. Until GONE the source runs the request; from then on one answer of the target decides who has it."""

    ASKED = "asked"
    EXPECTED = "expected"
    COPYING = "copying"
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Move:
    """One move. ``done`` becomes ``None`` when the target runs the request, else why it does not."""

    number: int
    source: Member
    target: Member
    done: asyncio.Future[str | None]
    phase: Phase = Phase.ASKED
    owned: Owned | None = None
    left: float = 0.0
    pages: int = 0


@dataclass(slots=True)
class MoveCounts:
    """What moves did so far. ``still_seconds``: from the news that a request has left until the one that it runs again.

    ``pages`` and ``bytes``: that were sent; ``spared_pages`` and ``spared_bytes``: that were not, because the destination had them.
    """

    begun: int = 0
    done: int = 0
    failed: int = 0
    pages: int = 0
    bytes: int = 0
    spared_pages: int = 0
    spared_bytes: int = 0
    still_seconds: float = 0.0
    last_still: list[float] = field(default_factory=list)


class Home(Protocol):
    """The group, as moves need it."""

    def owned(self, request_id: int) -> Owned | None:
        """The record of a request that has not ended."""

    def translated(self, submit: Submit, member: Member) -> Submit | None:
        """The request with the generations of adapters that this engine knows; ``None``: it lacks one."""

    def has_place(self, owned: Owned, member: Member) -> None:
        """A request has come to rest with this engine."""

    def replay(self, owned: Owned) -> None:
        """Nobody has the request any more."""


class Relocation:
    """All moves of a group that are under way. ``ask_first``: what a destination has is not sent to it."""

    def __init__(self, home: Home, *, ask_first: bool = True) -> None:
        self.counts = MoveCounts()
        self.moves: dict[int, Move] = {}
        self._home = home
        self._ask_first = ask_first
        self._last = 0

    def busy(self, member: Member) -> bool:
        """True when a request comes to or goes from this engine."""
        return any(member in (move.source, move.target) for move in self.moves.values())

    def begin(self, source: Member, target: Member, room: int, request_id: int | None = None) -> asyncio.Future[str | None]:
        """Ask the source for a request, or for this one. The result is ``None`` when the target runs it, else why not."""
        self._last += 1
        move = Move(self._last, source, target, asyncio.get_running_loop().create_future())
        self.moves[move.number] = move
        self.counts.begun += 1
        source.tell(Leave(move.number, request_id, room, target.address))
        return move.done

    def hear(self, member: Member, news: RelocationNews) -> None:
        """News of a member about a move, or about a request that it was given without one."""
        match news:
            case Leaving() if self._is(news.move, member, source=True):
                self._leaving(self.moves[news.move], news)
            case Stays() if self._is(news.move, member, source=True):
                self._stays(self.moves[news.move], news.reason)
            case Expected() if self._is(news.move, member, source=False):
                self._expected(self.moves[news.move], news)
            case Departed() if self._is(news.move, member, source=True):
                self._departed(self.moves[news.move], news)
            case Adopted() if self._is(news.move, member, source=False):
                self._adopted(self.moves[news.move], news.problem)
            case Adopted(move=0):
                self._settled(member, news)
            case Departed() | Leaving():
                member.tell(Return(news.move))  # of a move that has ended: whoever is not asked for stays
            case Stays() | Expected() | Adopted():
                logger.info("instance %d told of move %d, which has ended", member.number, news.move)

    def member_lost(self, member: Member) -> None:
        """An engine has ended: whoever still has the request keeps it."""
        for move in [move for move in self.moves.values() if member in (move.source, move.target)]:
            if member is move.target:
                self._back(move, "the destination has ended")
            elif move.phase is not Phase.GONE:
                move.target.tell(Release(move.number))
                self._end(move, "the source has ended")
            else:
                move.target.tell(Release(move.number))  # it answers with Adopted: the request runs there, or nowhere

    def _is(self, number: int, member: Member, *, source: bool) -> bool:
        move = self.moves.get(number)
        return move is not None and member is (move.source if source else move.target)

    def _leaving(self, move: Move, news: Leaving) -> None:
        owned = self._home.owned(news.request_id)
        submit = self._home.translated(owned.submit, move.target) if owned is not None else None
        if owned is None or submit is None or owned.holder is not move.source:
            self._back(move, "it has ended" if owned is None else "the destination lacks its adapters")
            return
        move.owned, move.phase, move.pages = owned, Phase.EXPECTED, news.pages
        owned.move = move.number
        move.target.tell(Expect(move.number, submit, news.pages, news.reserve, news.full if self._ask_first else []))

    def _expected(self, move: Move, news: Expected) -> None:
        if news.problem is not None:
            self._back(move, news.problem)
        elif move.phase is Phase.EXPECTED:
            move.phase = Phase.COPYING
            move.source.tell(Proceed(move.number, news.known))

    def _stays(self, move: Move, reason: str) -> None:
        move.target.tell(Release(move.number))
        if move.phase is not Phase.GONE:
            self._end(move, reason)

    def _departed(self, move: Move, news: Departed) -> None:
        owned = move.owned
        submit = self._home.translated(owned.submit, move.target) if owned is not None else None
        if owned is None or submit is None:
            self._back(move, "it can't run there")
            return
        move.phase, move.left = Phase.GONE, time.monotonic()
        self.counts.pages += news.pages
        self.counts.bytes += news.sent_bytes
        self.counts.spared_pages += news.spared
        self.counts.spared_bytes += news.spared_bytes
        owned.give(None)
        state: RequestState = msgspec.structs.replace(news.state, submit=submit)
        move.target.tell(Adopt(move.number, state))

    def _adopted(self, move: Move, problem: str | None) -> None:
        if problem is not None or move.owned is None:
            if move.phase is Phase.GONE:
                self._back(move, problem or "it has ended")
            return
        move.source.tell(Release(move.number))
        seconds = time.monotonic() - move.left
        self.counts.still_seconds += seconds
        self.counts.last_still = [*self.counts.last_still[-255:], seconds]
        self._end(move, None)
        self._home.has_place(move.owned, move.target)

    def _back(self, move: Move, problem: str) -> None:
        """The source has it, or nobody has."""
        move.target.tell(Release(move.number))
        move.source.tell(Return(move.number))
        gone = move.phase is Phase.GONE
        self._end(move, problem)
        if not gone or move.owned is None:
            return
        if move.source.dead is None:
            self._home.has_place(move.owned, move.source)
        else:
            self._home.replay(move.owned)

    def _end(self, move: Move, problem: str | None) -> None:
        del self.moves[move.number]
        if move.owned is not None:
            move.owned.move = 0
        self.counts.done += problem is None
        self.counts.failed += problem is not None
        if not move.done.done():
            move.done.set_result(problem)

    def _settled(self, member: Member, news: Adopted) -> None:
        """A request that was given without a move, or taken back, runs; or it could not be taken over."""
        owned = self._home.owned(news.request_id)
        if news.problem is not None and owned is not None and owned.holder is member:
            logger.warning("instance %d could not take request %d over: %s", member.number, news.request_id, news.problem)
            owned.deaths += 1
            self._home.replay(owned)
