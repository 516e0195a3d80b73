"""Watched folders: adapters come, change and go as their sub-folders do, without a word to the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.server.adapter_choice import base_of
from headrace.server.adapter_roots import AdapterRoots, Place, Signature, base_model_of
from headrace.server.adapter_table import AT_ONCE, AdapterTable, ServedAdapter, Wanted
from headrace.server.model_table import ModelTable, printable
from headrace.server.notices import say

SECONDS = 0.5
"""Between two looks."""
DUTY = 0.02
"""Most of one core's time that looking may take; with very many folders the looks become rarer."""
SETTLED_SECONDS = 2.0
"""Files that nobody has touched for this long are taken at once, as all are by the first look; others when two looks agree."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A sub-folder with something new in it: where it leads, or why it can't be taken."""

    name: str
    base_model: str
    place: Place | None
    error: HeadraceError | None


class AdapterWatch:
    """Looks at the roots again and again. ``first_look`` is set when what lay there at the start is known."""

    def __init__(self, table: AdapterTable, models: ModelTable, roots: AdapterRoots) -> None:
        self.first_look = asyncio.Event()
        self._table, self._models, self._roots = table, models, roots
        self._known: dict[str, Signature] = {}
        self._settling: dict[str, Signature] = {}
        self._served: dict[str, ServedAdapter] = {}
        if not roots.roots:
            self.first_look.set()

    async def run(self) -> None:
        """Watch until cancelled; ends at once when there is nothing to watch."""
        while self._roots.roots:
            began = time.monotonic()
            seen = await asyncio.to_thread(lambda: list(self._roots.scan()))
            looked = time.monotonic() - began
            await self._forget(set(self._known) - {name for name, _, _ in seen})
            fresh = self._fresh(seen)
            served = await self._take(await asyncio.to_thread(self._look_into, fresh))
            self.first_look.set()
            await self._table.tell(served)
            await asyncio.sleep(max(SECONDS, looked / DUTY))

    def _fresh(self, seen: Sequence[tuple[str, Path, Signature]]) -> list[tuple[str, Path, Signature]]:
        """What is new or has changed, and is no longer being written."""
        now, fresh = time.time_ns(), []
        for name, folder, signature in seen:
            if self._known.get(name) == signature:
                continue
            quiet = now - max(changed for _, _, changed, _ in signature) > SETTLED_SECONDS * 1e9
            if self.first_look.is_set() and not quiet and self._settling.get(name) != signature:
                self._settling[name] = signature
                continue
            self._settling.pop(name, None)
            self._known[name] = signature
            fresh.append((name, folder, signature))
        return fresh

    def _look_into(self, fresh: Sequence[tuple[str, Path, Signature]]) -> list[_Found]:
        found = []
        for name, folder, signature in fresh:
            try:
                self._table.check_name(name)
                place = self._roots.watched_place(folder, signature)
                found.append(_Found(name, "" if self._models.alone else base_model_of(place.folder), place, None))
            except HeadraceError as error:
                found.append(_Found(name, "", None, error))
        return found

    async def _take(self, found: Sequence[_Found]) -> list[ServedAdapter]:
        """Give what was found its names; who has them now."""
        room = asyncio.Semaphore(AT_ONCE)

        async def take(one: _Found) -> ServedAdapter | None:
            if one.place is None:
                assert one.error is not None, "what has no place has an error"
                say(f"the adapter folder {printable(one.name)!r} is left out: {one.error.message}")
                return None
            async with room:
                model = base_of(self._models, one.base_model)
                former = self._served.get(one.name)
                if former is not None and former.model is not model:
                    await self._drop(one.name)
                served = await self._table.appear(Wanted(one.name, model, one.place))
                if served is not None:
                    self._served[one.name] = served
                return served

        return [served for served in await asyncio.gather(*map(take, found)) if served is not None]

    async def _forget(self, gone: set[str]) -> None:
        for name in gone:
            del self._known[name]
            self._settling.pop(name, None)
            await self._drop(name)

    async def _drop(self, name: str) -> None:
        """Take out what was served from a folder, unless somebody has put something else in its place."""
        served = self._served.pop(name, None)
        if served is not None and self._table.current(served.model, name) is served:
            await self._table.remove(served)
