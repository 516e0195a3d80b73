"""The side of a source: a request's full pages are copied beside the steps, the rest while it stands still."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from headrace.engine.page_channel import Channel, PageSender
from headrace.engine.relocation_wire import Departed, FullPages, Leave, Leaving, Proceed, RelocationNews, RequestState, Stays
from headrace.engine.request import LiveRequest
from headrace.engine.request_state import capture
from headrace.scheduling.handover import Lease
from headrace.scheduling.item import Item
from headrace.scheduling.leaving import who_leaves

if TYPE_CHECKING:
    from headrace.engine.loop import Engine

LAST_PAGES = 4  # so few pages are sent while the request stands still
MOST_STAGES = 4
MOST_AT_ONCE = 2


@dataclass(slots=True, eq=False)
class Outgoing:
    """A request that leaves. ``numbers``: under which its pages were sent, or are known to the other engine.

    ``known``: so many numbers stand for pages that it has; ``used``: numbers given so far, these included. ``lease`` and ``state``
    are set once the request has left.
    """

    move: int
    request: LiveRequest
    address: str
    room: int
    numbers: dict[int, int] = field(default_factory=dict)
    known: int = 0
    used: int = 0
    pins: list[Lease] = field(default_factory=list)
    sender: PageSender | None = None
    proceeding: bool = False
    stages: int = 0
    lease: Lease | None = None
    state: RequestState | None = None


class Departures:
    """Requests that leave one engine. ``channel`` ``None``: only those without pages can."""

    def __init__(self, engine: Engine, channel: Channel | None, news: list[RelocationNews]) -> None:
        self._engine = engine
        self._channel = channel
        self._handover = engine.scheduler.handover
        self._outgoing: dict[int, Outgoing] = {}
        self._news = news

    @property
    def busy(self) -> bool:
        """True when a request leaves, or has left and may come back."""
        return bool(self._outgoing)

    def turn(self) -> None:
        """Go on, between two steps."""
        for outgoing in list(self._outgoing.values()):
            if outgoing.lease is None:
                self._advance(outgoing)
            elif outgoing.sender is not None and outgoing.sender.problem is not None and outgoing.proceeding:
                outgoing.proceeding = False
                self._news.append(Stays(outgoing.move, outgoing.sender.problem))

    def proceed(self, call: Proceed) -> None:
        """There is room for the request: copy what the other engine does not have."""
        outgoing = self._outgoing.get(call.move)
        if outgoing is None:
            return
        outgoing.proceeding = True
        outgoing.known = outgoing.used = 1 + max((number for numbers in call.known.values() for number in numbers), default=-1)
        for choice in outgoing.request.open.values():
            for page, number in zip(self._full(choice.item), call.known.get(choice.index, ()), strict=False):
                outgoing.numbers.setdefault(page, number)
        if outgoing.numbers:  # held, because a page that went would come back with another content
            outgoing.pins.append(self._handover.pin(list(outgoing.numbers)))

    def release(self, move: int) -> None:
        """The other side has the request, or the move is given up before its last stage."""
        outgoing = self._outgoing.get(move)
        if outgoing is not None:
            self._end(outgoing)
            if outgoing.lease is not None:
                self._handover.drop(outgoing.lease)

    def take_back(self, move: int) -> tuple[RequestState, Lease] | None:
        """End a move; what had left, with numbers that count in the lease's list. ``None``: nothing had."""
        outgoing = self._outgoing.get(move)
        if outgoing is None:
            return None
        self._end(outgoing)
        if outgoing.state is None or outgoing.lease is None:
            return None
        left = set(outgoing.lease.pages)
        at = {number: page for page, number in outgoing.numbers.items() if page in left}
        return _renumbered(outgoing.state, at, outgoing.lease), outgoing.lease

    def leave(self, call: Leave) -> None:
        """Choose a request, or take the one that is asked for, and say what it needs elsewhere."""
        request, problem = self._choose(call)
        if request is None:
            self._news.append(Stays(call.move, problem))
            return
        items = _items(request)
        pages, reserve = self._handover.need(items)
        self._outgoing[call.move] = Outgoing(call.move, request, call.address, pages)
        size = self._engine.scheduler.pool.page_tokens
        full = [
            FullPages(choice.index, count, choice.item.tokens[choice.item.prompt_length : count * size])
            for choice in request.open.values()
            if (count := len(self._full(choice.item)))
        ]
        self._news.append(Leaving(call.move, request.submit.request_id, pages, reserve, full))

    def _full(self, item: Item) -> list[int]:
        """Pages of an item that will never change."""
        return item.pages[: item.computed // self._engine.scheduler.pool.page_tokens]

    def _choose(self, call: Leave) -> tuple[LiveRequest | None, str]:
        requests = self._engine._requests
        leaving = {id(outgoing.request) for outgoing in self._outgoing.values()}
        if len(leaving) >= MOST_AT_ONCE:
            return None, f"{len(leaving)} requests leave already"
        if call.request_id is not None:
            request = requests.get(call.request_id)
            if request is None or id(request) in leaving:
                return None, f"request {call.request_id} is not here, or leaves already"
            problem = self._obstacle(request)
            return (None, problem) if problem else (request, "")
        able = {
            request.submit.request_id: _items(request)
            for request in requests.values()
            if id(request) not in leaving and self._obstacle(request) is None
        }
        chosen = who_leaves(able, self._handover.wants, call.room)
        return (None, f"nothing here could go into {call.room} pages") if chosen is None else (requests[chosen], "")

    def _obstacle(self, request: LiveRequest) -> str | None:
        if not request.open:
            return "its grammar is being compiled"
        items = _items(request)
        if not all(self._handover.is_movable(item) for item in items if item.item_id in self._engine._choices):
            return "its pages are on their way from or to a disk"
        if self._channel is None and any(item.pages for item in items):
            return "there is no way for pages"
        return None

    def _advance(self, outgoing: Outgoing) -> None:
        """A stage has been sent: send what was filled meanwhile, or let go when that is little."""
        problem = None
        if self._engine._requests.get(outgoing.request.submit.request_id) is not outgoing.request:
            problem = "it has ended"
        elif outgoing.sender is not None:
            problem = outgoing.sender.problem
        if problem is not None:
            self._end(outgoing)
            self._news.append(Stays(outgoing.move, problem))
            return
        if not outgoing.proceeding or (outgoing.sender is not None and not outgoing.sender.idle):
            return
        full = [self._full(item) for item in _items(outgoing.request)]
        fresh = [page for page in dict.fromkeys(page for pages in full for page in pages) if page not in outgoing.numbers]
        if len(fresh) > LAST_PAGES and outgoing.stages < MOST_STAGES:
            outgoing.pins.append(self._handover.pin(fresh))
            self._send(outgoing, fresh)
        else:
            self._depart(outgoing)

    def _send(self, outgoing: Outgoing, fresh: list[int]) -> None:
        for page in fresh:
            outgoing.numbers[page] = outgoing.used
            outgoing.used += 1
        if outgoing.sender is None:
            assert self._channel is not None, "who has no way for pages lets none leave"
            channel = self._channel
            target = outgoing.address, outgoing.move
            outgoing.sender = PageSender(target, (channel.key, channel.identity), self._engine._pages, channel.checksum)
        outgoing.sender.send([(outgoing.numbers[page], page) for page in fresh])
        outgoing.stages += 1

    def _depart(self, outgoing: Outgoing) -> None:
        """The last stage: the request stands still from here on."""
        engine, request = self._engine, outgoing.request
        items = _items(request)
        rest = [page for page in dict.fromkeys(page for item in items for page in item.pages) if page not in outgoing.numbers]
        problem = self._obstacle(request)
        if problem is None and outgoing.used + len(rest) > outgoing.room:
            problem = "it has outgrown what was expected"
        if problem is not None:
            self._end(outgoing)
            self._news.append(Stays(outgoing.move, problem))
            return
        if rest:
            self._send(outgoing, rest)
        if outgoing.sender is not None:
            outgoing.sender.finish()
        outgoing.state = capture(request, engine._clock(), lambda pages: [outgoing.numbers[page] for page in pages])
        outgoing.lease = self._handover.detach(items)
        del engine._requests[request.submit.request_id]
        for choice in request.open.values():
            del engine._choices[choice.item.item_id]
            if engine._speculating is not None:
                engine._speculating.ended(choice)
        sent, size = outgoing.used - outgoing.known, engine._pages[0].nbytes
        spared = len(outgoing.numbers) - sent
        self._news.append(Departed(outgoing.move, outgoing.state, outgoing.stages, sent, sent * size, spared, spared * size))

    def _end(self, outgoing: Outgoing) -> None:
        del self._outgoing[outgoing.move]
        if outgoing.sender is not None:
            outgoing.sender.abort()
        for pin in outgoing.pins:
            self._handover.drop(pin)


def _items(request: LiveRequest) -> list[Item]:
    return [choice.item for choice in request.open.values()]


def _renumbered(state: RequestState, at: dict[int, int], lease: Lease) -> RequestState:
    """The state with numbers that count in the lease's own list: each place of a page in an item's list is one in the lease."""
    place = {page: index for index, page in enumerate(lease.pages)}
    choices = [msgspec.structs.replace(one, pages=[place[at[number]] for number in one.pages]) for one in state.choices]
    return msgspec.structs.replace(state, choices=choices)
