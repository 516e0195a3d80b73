"""The side of a destination: room is made, pages land, and the request goes on, or nothing of it is left here."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.engine.landing import PageLanding
from headrace.engine.relocation_wire import Adopt, Adopted, Expect, Expected, RelocationNews, RequestState
from headrace.engine.request import Grammar, check_submit
from headrace.engine.request_state import revive
from headrace.errors import HeadraceError
from headrace.scheduling.handover import Lease
from headrace.scheduling.item import root_of

if TYPE_CHECKING:
    from headrace.engine.loop import Engine

logger = logging.getLogger("headrace.engine.arriving")

MOST_AT_ONCE = 4


@dataclass(slots=True, eq=False)
class Incoming:
    """A request that may come. ``known``: by choice, which of its pages were here. ``asked``: Expect has been answered."""

    move: int
    lease: Lease | None = None
    landing: PageLanding | None = None
    grammar: Future[Grammar] | None = None
    known: dict[int, list[int]] = field(default_factory=dict)
    asked: bool = False
    state: RequestState | None = None


class Arrivals:
    """Requests that come to one engine."""

    def __init__(self, engine: Engine, news: list[RelocationNews]) -> None:
        self._engine = engine
        self._handover = engine.scheduler.handover
        self._incoming: dict[int, Incoming] = {}
        self._adopting: list[Incoming] = []
        self._news = news

    @property
    def busy(self) -> bool:
        """True when a request is expected, or waits for its pages or grammar."""
        return bool(self._incoming or self._adopting)

    def turn(self) -> None:
        """Go on, between two steps."""
        for incoming in list(self._incoming.values()):
            self._answer(incoming)
        for incoming in list(self._adopting):
            self._try_adopt(incoming)

    def release(self, move: int) -> None:
        """The request does not come."""
        incoming = self._incoming.pop(move, None)
        if incoming is not None:
            self._drop(incoming)
        for adopting in [one for one in self._adopting if one.move == move]:
            self._give_up(adopting, "given up")

    def take_back(self, state: RequestState, lease: Lease) -> None:
        """A request that had left comes back to its pages."""
        self._adopting.append(Incoming(0, lease, grammar=self._compile(state), state=state))

    def landing_of(self, move: int) -> PageLanding | None:
        """Where a move's pages go; asked by the listener's threads."""
        incoming = self._incoming.get(move)
        if incoming is None:
            incoming = next((one for one in list(self._adopting) if one.move == move), None)
        return incoming.landing if incoming is not None else None

    def expect(self, call: Expect) -> None:
        """Make room for a request that may come, or say why there is none."""
        engine = self._engine
        try:
            check_submit(call.submit, engine.limits)
            engine._check_adapters(call.submit)
        except HeadraceError as error:
            self._news.append(Expected(call.move, error.message))
            return
        if len(self._incoming) >= MOST_AT_ONCE:
            self._news.append(Expected(call.move, f"{len(self._incoming)} requests come already"))
            return
        incoming = Incoming(call.move)
        if call.pages + call.reserve and not self._make_room(incoming, call):
            self._news.append(Expected(call.move, "there is no room"))
            return
        incoming.grammar = self._compile(RequestState(call.submit, []))
        self._incoming[call.move] = incoming

    def _make_room(self, incoming: Incoming, call: Expect) -> bool:
        """Hold the request's pages that are known here, compared token by token, and as many others as it needs beside them."""
        submit, engine = call.submit, self._engine
        root = root_of(submit.tenant, tuple((use.generation, use.scale) for use in submit.adapters))
        found = {one.index: self._handover.find(root, [*submit.prompt, *one.tokens], one.count) for one in call.full}
        known = list(dict.fromkeys(page for pages in found.values() for page in pages))
        lease = self._handover.expect(call.pages, call.reserve, submit.params.n, known)
        if lease is None:
            return False
        numbers = {page: number for number, page in enumerate(known)}
        incoming.known = {index: [numbers[page] for page in pages] for index, pages in found.items() if pages}
        incoming.lease = lease
        incoming.landing = PageLanding(engine._pages, lease.pages, len(known))
        engine._touch_ahead(engine.scheduler.pool.reach)
        return True

    def _compile(self, state: RequestState) -> Future[Grammar] | None:
        spec = state.submit.params.grammar
        if spec is None or state.submit.embed:
            return None
        try:
            return self._engine.compiler.start(spec)
        except HeadraceError as error:
            refused: Future[Grammar] = Future()
            refused.set_exception(error)
            return refused

    def _answer(self, incoming: Incoming) -> None:
        if not incoming.asked and (incoming.grammar is None or incoming.grammar.done()):
            incoming.asked = True
            self._news.append(Expected(incoming.move, known=incoming.known))

    def adopt(self, call: Adopt) -> None:
        """Run this request as soon as its pages are there."""
        if call.move:
            incoming = self._incoming.get(call.move)
            if incoming is None:
                self._news.append(Adopted(call.move, call.state.submit.request_id, "it was not expected"))
                return
        else:
            incoming = Incoming(0, grammar=self._compile(call.state))
        incoming.state = call.state
        self._adopting.append(incoming)  # first, so that the listener's threads find it at any moment
        self._incoming.pop(call.move, None)
        self._try_adopt(incoming)

    def _try_adopt(self, incoming: Incoming) -> None:
        state = incoming.state
        assert state is not None, "it has left its source"
        wanted = {number for choice in state.choices for number in choice.pages}
        landing = incoming.landing
        if landing is not None and not landing.has(wanted):
            if landing.problem is not None:
                self._give_up(incoming, landing.problem)
            return
        if incoming.grammar is not None and not incoming.grammar.done():
            return
        self._adopting.remove(incoming)
        try:
            self._enter(state, incoming)
        except HeadraceError as error:
            self._drop(incoming)
            self._tell(incoming, state, error.message)
        except Exception:  # what one request brings with it harms no other
            logger.exception("request %d could not be taken over", state.submit.request_id)
            self._drop(incoming)
            self._tell(incoming, state, "it could not be taken over; the log says why")
        else:
            self._tell(incoming, state, None)

    def _enter(self, state: RequestState, incoming: Incoming) -> None:
        engine = self._engine
        if state.submit.request_id in engine._requests:
            raise HeadraceError("invalid_value", f"request id {state.submit.request_id} is in use", param="request_id")
        check_submit(state.submit, engine.limits)
        engine._check_adapters(state.submit)
        request, choices = revive(state, engine._next_item, engine._clock(), engine.limits)
        grammar = incoming.grammar.result() if incoming.grammar is not None else None
        known = {choice.index: choice for choice in state.choices}
        for choice in choices:
            if grammar is not None:
                choice.matcher = grammar.matcher()
                for token in known[choice.index].tokens:
                    choice.matcher.advance(token)
        if incoming.landing is not None:
            incoming.landing.close()
        for choice in choices:
            if incoming.lease is not None:
                choice.item.pages = [incoming.lease.pages[number] for number in known[choice.index].pages]
                choice.item.computed = known[choice.index].computed
        engine._next_item += len(state.choices) + request.params.n + (request.params.best_of or 0)
        forks = {id(fork) for choice in choices for fork in choice.item.forks}
        self._handover.attach([choice.item for choice in choices if id(choice.item) not in forks], incoming.lease)
        engine._requests[state.submit.request_id] = request
        for choice in choices:
            engine._choices[choice.item.item_id] = choice
            if engine._speculating is not None:
                engine._speculating.open(choice)

    def _tell(self, incoming: Incoming, state: RequestState, problem: str | None) -> None:
        self._news.append(Adopted(incoming.move, state.submit.request_id, problem))

    def _give_up(self, incoming: Incoming, problem: str) -> None:
        self._adopting.remove(incoming)
        self._drop(incoming)
        assert incoming.state is not None, "it has left its source"
        self._tell(incoming, incoming.state, problem)

    def _drop(self, incoming: Incoming) -> None:
        if incoming.landing is not None:
            incoming.landing.close()
        if incoming.grammar is not None:
            incoming.grammar.cancel()
        if incoming.lease is not None:
            self._handover.drop(incoming.lease)
