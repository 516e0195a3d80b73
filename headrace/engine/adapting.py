"""The engine's side of adapters: calls about them answered, files read on a thread of their own, steps told where they lie."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from headrace.engine.adapters import Adapters, Prepared
from headrace.engine.wire import (
    AdapterAnswer,
    AdapterCall,
    AdapterCard,
    AdapterGauges,
    AdapterList,
    ListAdapters,
    PinAdapter,
    RegisterAdapter,
    RemoveAdapter,
)
from headrace.errors import HeadraceError
from headrace.memory.adapter_store import AdapterRecord
from headrace.scheduling.scheduler import Scheduler

logger = logging.getLogger("headrace.engine.adapting")

MOST_NAME = 256  # characters


class Adapting:
    """Adapters of one engine. Loads that the scheduler has begun run on one thread beside the steps, and end between them.

    What only checks files (registering) has a thread as well, so that no load waits for two thousand registrations.
    """

    def __init__(self, scheduler: Scheduler, adapters: Adapters) -> None:
        self.adapters = adapters
        self._scheduler = scheduler
        self._presence = scheduler.adapters
        self._reader = ThreadPoolExecutor(1, "adapter")
        self._checker = ThreadPoolExecutor(1, "adapter-check")
        self._loads: dict[int, Future[float]] = {}
        self._checks: list[tuple[RegisterAdapter, Future[Prepared]]] = []
        self._answers: list[AdapterAnswer | AdapterList] = []
        self._uses: dict[int, int] = {}
        self._load_seconds = 0.0
        self._ever = False

    @property
    def busy(self) -> bool:
        """True when something is being read, so that the next step may do something though this one did not."""
        return bool(self._loads or self._checks or self._presence.to_load)

    @property
    def futures(self) -> list[Future[Any]]:
        """What is being read."""
        return [*self._loads.values(), *(future for _, future in self._checks)]

    def ask(self, call: AdapterCall) -> None:
        """Take a call; its answer comes with :meth:`take_answers`."""
        try:
            match call:
                case RegisterAdapter():
                    self._check_name(call.name)
                    self._check_expected(call.name, call.expected_generation)
                    self._checks.append(
                        (call, self._checker.submit(self.adapters.prepare, Path(call.folder), check_values=call.check_values))
                    )
                case RemoveAdapter():
                    self._answers.append(AdapterAnswer(call.call_id, self.remove(call.name, call.expected_generation)))
                case PinAdapter():
                    self._answers.append(AdapterAnswer(call.call_id, self.pin(call.name, pinned=call.pinned)))
                case ListAdapters():
                    self._answers.append(AdapterList(call.call_id, self.cards()))
        except HeadraceError as error:
            self._answers.append(_refusal(call.call_id, error))

    def take_answers(self) -> list[AdapterAnswer | AdapterList]:
        """Answers to calls; each comes once."""
        if self._checks:
            self._end_checks()
        answers, self._answers = self._answers, []
        return answers

    def register(self, name: str, folder: Path, expected_generation: int | None = None, *, pin: bool = False) -> AdapterCard:
        """Check a folder and give it the name, here and now. Raises ``model_file``, ``invalid_value`` or ``adapter_conflict``."""
        self._check_name(name)
        self._check_expected(name, expected_generation)
        return self._enter(name, self.adapters.prepare(folder), pin=pin)

    def enter(self, name: str, prepared: Prepared) -> AdapterCard:
        """Give a folder that was checked the name, between two steps. Raises ``invalid_value``."""
        self._check_name(name)
        return self._enter(name, prepared, pin=False)

    def remove(self, name: str, expected_generation: int | None = None) -> AdapterCard:
        """Take a name away; who uses the adapter keeps it. Raises ``adapter_not_found`` or ``adapter_conflict``."""
        record = self.find(name)
        self._check_expected(name, expected_generation)
        card = self.card(record)
        self._presence.unkeep(record)
        self._presence.store.retire(name)
        self._uses.pop(record.generation, None)
        return card

    def find(self, name: str) -> AdapterRecord:
        """The generation that has a name. Raises ``adapter_not_found``."""
        record = self._presence.store.find(name)
        if record is None:
            raise HeadraceError("adapter_not_found", f"no adapter is called {name[:64]!r}", param="lora_name")
        return record

    def pin(self, name: str, *, pinned: bool) -> AdapterCard:
        """Keep an adapter in memory, or no longer. Raises ``adapter_not_found``, or ``invalid_value`` when it has no room."""
        record = self.find(name)
        if pinned:
            self._presence.keep(record, self._scheduler.items)
            self.begin()
        else:
            self._presence.unkeep(record)
        return self.card(record)

    def cards(self) -> list[AdapterCard]:
        """All adapters that have names, the oldest first."""
        return [self.card(record) for record in self._presence.store if not record.retired]

    def card(self, record: AdapterRecord) -> AdapterCard:
        """What is known of one."""
        facts = self.adapters.facts(record.generation)
        return AdapterCard(
            record.name, record.generation, record.size, record.size * self.adapters.page_bytes, record.state.value,
            self._presence.is_kept(record.generation), facts.rank, list(facts.modules), facts.parameters, facts.base_model,
            str(facts.folder), record.waiting, self._uses.get(record.generation, 0),
        )  # fmt: skip

    def check_uses(self, generations: Iterable[int]) -> None:
        """Refuse a new request for adapters that have no name any more. Raises ``adapter_not_found``."""
        for generation in generations:
            record = self._presence.store.known(generation)
            if record is None or record.retired:
                raise HeadraceError("adapter_not_found", f"adapter generation {generation} is not registered", param="model")

    def count_use(self, generations: Iterable[int]) -> None:
        """A request for these has been taken."""
        for generation in generations:
            self._uses[generation] = self._uses.get(generation, 0) + 1

    def begin(self) -> None:
        """Read what the scheduler has given pages to."""
        for generation in self._presence.to_load:
            self._loads[generation] = self._reader.submit(self._fill, generation)
        self._presence.to_load.clear()

    def collect(self) -> list[tuple[int, HeadraceError]]:
        """Tell the scheduler what has been read. What could not be is returned, for :meth:`failed` after its requests are gone."""
        failed: list[tuple[int, HeadraceError]] = []
        for generation in [generation for generation, future in self._loads.items() if future.done()]:
            error = self._loads[generation].exception()
            if error is None:
                self._load_seconds += self._loads.pop(generation).result()
                self._scheduler.adapter_loaded(generation)
                continue
            del self._loads[generation]
            if not isinstance(error, HeadraceError):  # whatever goes wrong in a file belongs to the requests that want it
                logger.error("adapter generation %d could not be loaded", generation, exc_info=error)
                error = HeadraceError("internal_error", "the adapter could not be loaded; the server's log says why", param="model")
            else:
                logger.warning("adapter generation %d can't be loaded: %s", generation, error.message)
            failed.append((generation, error))
        return failed

    def failed(self, generation: int) -> None:
        """A load has come to nothing, and nobody waits for it any more."""
        self._presence.failed(generation)

    def gauges(self) -> AdapterGauges | None:
        """The state of adapters now; ``None`` when none was ever registered."""
        if not self._ever:
            return None
        store = self._presence.store
        return AdapterGauges(
            registered=store.names, resident=store.holding - store.loading, loading=store.loading,
            adapter_pages=store.resident_pages,
            loads=self._presence.loads, evictions=store.evictions, failures=self._presence.failures,
            load_seconds=self._load_seconds, page_bytes=self.adapters.page_bytes,
        )  # fmt: skip

    def close(self) -> None:
        """Stop reading."""
        self._checker.shutdown(wait=True, cancel_futures=True)
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _fill(self, generation: int) -> float:
        began = time.perf_counter()
        self.adapters.fill(generation)
        return time.perf_counter() - began

    def _end_checks(self) -> None:
        """Registrations end in the order in which they were asked for."""
        while self._checks and self._checks[0][1].done():
            call, future = self._checks.pop(0)
            try:
                self._check_expected(call.name, call.expected_generation)
                self._answers.append(AdapterAnswer(call.call_id, self._enter(call.name, future.result(), pin=call.pin)))
            except HeadraceError as error:
                self._answers.append(_refusal(call.call_id, error))
            except Exception:  # a file that breaks its reader breaks one call
                logger.exception("adapter %r could not be registered", call.name[:64])
                message = "the adapter could not be registered; the server's log says why"
                self._answers.append(_refusal(call.call_id, HeadraceError("internal_error", message)))

    def _enter(self, name: str, prepared: Prepared, *, pin: bool) -> AdapterCard:
        former = self._presence.store.find(name)
        if pin:
            self._presence.check_keep(prepared.size, self._scheduler.items, prepared.size)
        record = self.adapters.enter(name, prepared)
        if former is not None:
            self._presence.unkeep(former)
            self._uses.pop(former.generation, None)
        self._ever = True
        return self.pin(name, pinned=True) if pin else self.card(record)

    def _check_expected(self, name: str, expected: int | None) -> None:
        record = self._presence.store.find(name)
        present = 0 if record is None else record.generation
        if expected is not None and expected != present:
            who = f"generation {present} has" if present else "no adapter has"
            raise HeadraceError("adapter_conflict", f"{who} the name {name[:64]!r}, not {expected}", param="expected_generation")

    @staticmethod
    def _check_name(name: str) -> None:
        if not 1 <= len(name) <= MOST_NAME or not name.isprintable():
            message = f"an adapter's name has 1 to {MOST_NAME} printable characters"
            raise HeadraceError("invalid_value", message, param="lora_name")


def _refusal(call_id: int, error: HeadraceError) -> AdapterAnswer:
    return AdapterAnswer(call_id, None, error.code, error.message, error.param)
