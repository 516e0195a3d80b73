"""Requests that leave this engine for another one while they run, or come from one: everything at the border of steps.

The protocol is that of "Llumnix: Dynamic Scheduling for Large Language Model Serving" (Sun et al.) with one owner record, kept by
whoever sends the calls. A source copies full pages beside its steps; when few are left it takes the request out, sends the rest and
says so, and keeps everything until it hears what became of it. A destination answers each :class:`Adopt` with one
:class:`Adopted`, and has nothing of the request unless that says it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.engine.arriving import Arrivals
from headrace.engine.departing import Departures
from headrace.engine.page_channel import Channel
from headrace.engine.relocation_wire import Adopt, Expect, Leave, Proceed, Release, RelocationNews, Return

if TYPE_CHECKING:
    from headrace.engine.loop import Engine


class Relocating:
    """One engine's side of moves between engines. ``channel`` ``None``: requests come and go without pages only."""

    def __init__(self, engine: Engine, channel: Channel | None = None) -> None:
        self._news: list[RelocationNews] = []
        self._channel = channel
        self._departures = Departures(engine, channel, self._news)
        self._arrivals = Arrivals(engine, self._news)
        if channel is not None:
            channel.listener.start(self._arrivals.landing_of, channel.checksum)

    @property
    def busy(self) -> bool:
        """True when something is under way, so that the border of the next step may bring news though this one did not."""
        return bool(self._departures.busy or self._arrivals.busy or self._news)

    @property
    def refused(self) -> dict[str, int]:
        """Connections for pages that were turned away, by reason."""
        return self._channel.listener.refusals.counts if self._channel is not None else {}

    def take_news(self) -> list[RelocationNews]:
        """What must be told; each once, after all outputs of the steps before."""
        news = self._news.copy()
        self._news.clear()
        return news

    def handle(self, call: Leave | Expect | Proceed | Adopt | Release | Return) -> None:
        """Take a call, between two steps."""
        match call:
            case Leave():
                self._departures.leave(call)
            case Expect():
                self._arrivals.expect(call)
            case Proceed():
                self._departures.proceed(call)
            case Adopt():
                self._arrivals.adopt(call)
            case Release():
                self._departures.release(call.move)
                self._arrivals.release(call.move)
            case Return():
                back = self._departures.take_back(call.move)
                if back is not None:
                    self._arrivals.take_back(*back)

    def turn(self) -> None:
        """Go on with everything that is under way, between two steps."""
        self._departures.turn()
        self._arrivals.turn()

    def close(self) -> None:
        """Stop listening."""
        if self._channel is not None:
            self._channel.listener.close()
