"""An engine whose requests leave it and come back while they run, with their pages over a socket, as between two engines."""

from __future__ import annotations

import time
from pathlib import Path

from headrace.engine.build import page_checksum
from headrace.engine.loop import Engine
from headrace.engine.page_channel import Channel, PageListener
from headrace.engine.relocating import Relocating
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
    Return,
    Stays,
)
from headrace.engine.wire import Submit

KEY, IDENTITY = b"k" * 32, "the same engine"
EVERY = 2  # steps between two departures


class Wandering:
    """Sends one request after the other away and takes it in again. ``moved``: how often a request went on behind moved pages.

    ``once``: each goes as soon as it has a first token, as from an instance for prompts to one for tokens, and not again.
    """

    def __init__(self, engine: Engine, folder: Path, submits: list[Submit], *, once: bool = False) -> None:
        self.moved = 0
        self._once = once
        self._gone: set[int] = set()
        self._engine = engine
        self._submits = {submit.request_id: submit for submit in submits}
        self._address = str(folder / f"{time.monotonic_ns()}")
        listener = PageListener(self._address, KEY, engine._pages[0].nbytes, IDENTITY)
        self._relocating = Relocating(engine, Channel(listener, KEY, IDENTITY, page_checksum()))
        self._number = 0
        self._turns = 0

    @property
    def busy(self) -> bool:
        return self._relocating.busy

    def turn(self) -> None:
        """Between two steps."""
        self._turns += 1
        live = self._leavers()
        if live and not self.busy and (self._once or self._turns % EVERY == 0):
            self._number += 1
            chosen = live[0 if self._once else self._number % len(live)]
            self._gone.add(chosen)
            self._relocating.handle(Leave(self._number, chosen, 0, self._address))
        self._relocating.turn()
        for news in self._relocating.take_news():
            self._lead(news)

    def _leavers(self) -> list[int]:
        requests = self._engine._requests
        if not self._once:
            return sorted(requests)
        begun = {number for number, one in requests.items() if any(choice.item.generated for choice in one.open.values())}
        return sorted(begun - self._gone)

    def _lead(self, news: RelocationNews) -> None:
        handle = self._relocating.handle
        match news:
            case Leaving():
                full = news.full if news.move % 3 == 0 else []  # it knows all full pages of itself: most are to be copied
                handle(Expect(news.move, self._submits[news.request_id], news.pages, news.reserve, full))
            case Expected():
                handle(Proceed(news.move, news.known) if news.problem is None else Return(news.move))
                if news.problem is not None:
                    handle(Release(news.move))
            case Departed():
                handle(Adopt(news.move, news.state))
            case Adopted(move=0):
                assert news.problem is None, news.problem
            case Adopted():
                self.moved += news.problem is None
                handle(Release(news.move) if news.problem is None else Return(news.move))
            case Stays():
                handle(Release(news.move))

    def close(self) -> None:
        self._relocating.close()
