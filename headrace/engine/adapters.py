"""Adapters of a running engine: folders checked and registered, their numbers brought into pages, steps told where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.kernels.adapter_layout import lay_out
from headrace.kernels.adapter_pages import place_adapter
from headrace.kernels.interface import Bytes, PlacedAdapter, StepAdapters
from headrace.memory.adapter_store import AdapterRecord, AdapterStore
from headrace.models.adapter import MODULES
from headrace.models.adapter_file import AdapterReader, identify_adapter
from headrace.models.config import ModelConfig
from headrace.models.files import FileIdentity

Use = tuple[int, float]
"""A generation and what its sum is multiplied by."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What stays known of an adapter while it is not in memory: ``identity`` of its files, ``rank`` the largest of ``modules``."""

    folder: Path
    identity: tuple[FileIdentity, FileIdentity]
    rank: int
    modules: tuple[str, ...]
    parameters: int
    base_model: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder that was checked; ``size``: pages it will take."""

    facts: AdapterFacts
    size: int


def _any_base() -> None:
    """Adapters fit this base."""


class Adapters:
    """Between the accounting of a :class:`~headrace.memory.adapter_store.AdapterStore` and the bytes of its ``pool``.

    Nothing of an adapter but a few facts stays in memory when it is not resident. ``pool``: [pages, page_bytes], or in strips.
    ``check_base`` raises when the base can't have adapters at all.
    """

    def __init__(self, config: ModelConfig, store: AdapterStore, pool: Bytes, check_base: Callable[[], object] = _any_base) -> None:
        self.store = store
        self.page_bytes = int(pool[:1].size)
        self._config, self._pool, self._check_base = config, pool, check_base
        self._reader = AdapterReader(config)
        self._facts: dict[int, AdapterFacts] = {}
        self._placed: dict[int, PlacedAdapter] = {}
        store.on_evict = self._forget

    def register(self, name: str, folder: Path) -> AdapterRecord:
        """Check a folder and give it the name. Its values are read when it is loaded.

        Raises ``model_file`` for what is wrong with it, ``invalid_value`` when the whole pool could not hold it.
        """
        return self.enter(name, self.prepare(folder))

    def prepare(self, folder: Path, *, check_values: bool = False) -> Prepared:
        """Check a folder: the slow part of registering, which touches no accounting.

        ``check_values`` reads its numbers as well, unless the pool could not hold them anyway.
        """
        self._check_base()
        identity = identify_adapter(folder)
        outline = self._reader.outline(folder)
        size = lay_out(self._config, outline.ranks, self.page_bytes).pages
        if check_values and size <= len(self._pool):
            self._reader.read(folder)
        ranks = [rank for layer in outline.ranks for rank in layer.values()]
        changed = {name for layer in outline.ranks for name in layer}
        modules = tuple(name for name in MODULES if name in changed)
        return Prepared(AdapterFacts(folder, identity, max(ranks), modules, outline.parameters, outline.base_model[:256]), size)

    def enter(self, name: str, prepared: Prepared) -> AdapterRecord:
        """Give a folder that was checked the name. Raises ``invalid_value`` when the whole pool could not hold it."""
        record = self.store.register(name, prepared.size)
        self._facts[record.generation] = prepared.facts
        if len(self._facts) > 2 * len(self.store) + 16:
            live = {one.generation for one in self.store}
            self._facts = {generation: facts for generation, facts in self._facts.items() if generation in live}
        return record

    def facts(self, generation: int) -> AdapterFacts:
        """What is known of a generation that is registered or still in use."""
        return self._facts[generation]

    def load(self, generation: int, ahead: bool = False) -> bool:
        """Bring it into pages now; ``False`` when there is no room (see :meth:`AdapterStore.begin_load`).

        Raises ``model_file`` when its files are damaged, gone or no longer those that were registered; its pages are free again.
        """
        pages = self.store.begin_load(generation, ahead)
        if pages is None:
            return False
        try:
            self.fill(generation)
        except BaseException:
            self.store.abandon_load(generation)
            raise
        self.store.finish_load(generation)
        return True

    def fill(self, generation: int) -> None:
        """Read its files into the pages that a load has begun with: the slow part, which touches no accounting."""
        folder, identity = self._facts[generation].folder, self._facts[generation].identity
        adapter = self._reader.read(folder)
        if identify_adapter(folder) != identity:
            name = self.store.get(generation).name
            raise HeadraceError("model_file", f"adapter {name[:64]!r} has changed since it was registered; register it again")
        pages = np.asarray(self.store.get(generation).pages, np.int32)
        self._placed[generation] = place_adapter(adapter, self._config, self._pool, pages)

    def step(self, uses: Sequence[Sequence[Use]]) -> StepAdapters | None:
        """For the slices of a step, what each uses; ``None`` when none uses any. All of them must be resident (and pinned)."""
        index: dict[int, int] = {}
        ids: list[int] = []
        starts, scales = [0], []
        for own in uses:
            for generation, scale in own:
                ids.append(index.setdefault(generation, len(index)))
                scales.append(scale)
            starts.append(len(ids))
        if not ids:
            return None
        placed = tuple(self._placed[generation] for generation in index)
        return StepAdapters(np.array(starts, np.int32), np.array(ids, np.int32), np.array(scales, np.float32), placed)

    def _forget(self, record: AdapterRecord) -> None:
        self._placed.pop(record.generation, None)
