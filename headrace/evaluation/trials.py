"""Many engines on one loaded model, so that variants of a mechanism run in turns on the same weights and pages."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from headrace.engine.build import (
    PIECE_BYTES,
    SWAP_POOLS,
    BuildOptions,
    BuiltEngine,
    build_engine,
    make_adapting,
    make_keeping,
    make_moving,
    make_sampler,
    make_scheduler,
    page_checksum,
)  # fmt: skip
from headrace.engine.grammars import LazyGrammars
from headrace.engine.loop import Engine, EngineParts
from headrace.engine.settings import EngineSettings
from headrace.engine.speculating import Speculating
from headrace.engine.viewing import Viewing
from headrace.engine.wire import Submit, TokenLogprob, TokenOutput
from headrace.evaluation.experiment import Conditions
from headrace.evaluation.workload import passage
from headrace.memory.arena import Arena
from headrace.memory.disk_tier import SECTOR, Checksum, DiskTier, slot_bytes
from headrace.memory.moves import MoveOptions
from headrace.memory.views import AHEAD_PAGES, ViewPlan, Views
from headrace.models.packages import cache_dir
from headrace.scheduling.keeping import KeepOptions
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.swapping import SwapOptions
from headrace.speculation.proposer import Proposer
from headrace.text.open_tokenizer import open_tokenizer

Key = tuple[int, int]
"""(request id, choice)."""


@dataclass(slots=True)
class Trace:
    """Everything that one choice of one request gave: what two runs are compared by."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None

    def take(self, output: TokenOutput) -> None:
        """Add a step's output."""
        self.tokens += output.tokens
        self.logprobs += output.logprobs or []
        self.prompt_logprobs += output.prompt_logprobs or []
        self.finish = output.finish or self.finish


Traces = Mapping[Key, Trace]


@dataclass(frozen=True, slots=True)
class SwapVariant:
    """How an engine swaps: ``run_pages`` most adjacent pages a piece (0: as in the server), ``folder`` where the swap file lies
    (none: the cache folder), ``pieces`` in how many pieces each page goes, as where each layer's keys and values have pages of
    their own; the rest as in :class:`headrace.engine.moving.Moving` and
     :class:`headrace.memory.moves.MoveOptions`."""

    mode: str = "swap"
    run_pages: int = 0
    reuse: bool = True
    synchronous: bool = False
    folder: Path | None = None
    pieces: int = 1


class PiecewiseTier(DiskTier):
    """Pages carried in ``pieces`` each, one after the other and none less than a sector: only for comparison."""

    def __init__(self, arena: Arena, folder: Path, slots: int, pieces: int, checksum: Checksum) -> None:
        super().__init__(arena, folder, slots, checksum)
        self._cuts = sorted({self.slot_bytes * piece // pieces // SECTOR * SECTOR for piece in range(pieces)} | {self.slot_bytes})

    def _carry(self, call: Callable[[int, memoryview, int], int], view: memoryview, offset: int) -> None:
        for page in range(0, len(view), self.slot_bytes):
            for start, stop in pairwise(self._cuts):
                super()._carry(call, view[page + start : page + stop], offset + page + start)


class Bench:
    """A loaded model on which engines with different settings are made; a context manager.

    Only one engine made here may be in use at a time: they share the pages. ``views``: there is room for contiguous views.
    """

    def __init__(self, conditions: Conditions, kv: str = "auto", *, views: bool | None = None) -> None:
        settings = EngineSettings(model=conditions.model, threads=conditions.threads, kv=kv)
        self.built: BuiltEngine = build_engine(settings, BuildOptions(views=views))
        self.tokenizer = open_tokenizer(self.built.model.tokenizer_source)
        self._grammars = LazyGrammars(lambda: self.tokenizer, self.built.model.config.vocab)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.built.close()

    def engine(
        self,
        scheduling: SchedulingSettings | None = None,
        pages: int | None = None,
        swap: SwapVariant | None = None,
        views: Views | None = None,
        keep: Path | None = None,
        proposers: Sequence[Proposer] = (),
    ) -> Engine:
        """A fresh engine over the loaded chain; ``pages`` limits its pool (at most the pages that are mapped).

        ``keep``: a folder on a disk that keeps pages of prompts. One with ``swap``, ``views`` or ``keep`` must be closed.
        ``proposers``: who drafts (nobody). Without ``swap``, preempted requests are computed again; without ``views``
        pages are read through tables.
        """
        built = self.built
        held = min(pages or built.arena.pages, built.arena.pages)
        page = slot_bytes(built.arena.page_bytes)
        options = None
        if swap is not None:
            run_pages = swap.run_pages or max(1, PIECE_BYTES // page)
            options = SwapOptions(MoveOptions(SWAP_POOLS * held, run_pages, swap.reuse), page, swap.mode)
        kept = KeepOptions(SWAP_POOLS * built.arena.pages, page, max(1, PIECE_BYTES // page)) if keep is not None else None
        scheduler = make_scheduler(scheduling or SchedulingSettings(), held, built.chain, built.calibration, options, kept)
        keeping = make_keeping(scheduler, built.arena, keep, "experiment-1") if keep is not None else None
        moving = None
        if swap is not None:
            folder = swap.folder or cache_dir()
            moving = make_moving(scheduler, built.arena, folder, synchronous=swap.synchronous)
            if swap.pieces > 1:
                moving.mover.tier.close()
                moving.mover.tier = PiecewiseTier(built.arena, folder, SWAP_POOLS * held, swap.pieces, page_checksum())
        limits = dataclasses.replace(built.engine.limits)
        sampler = make_sampler(built.chain, built.threads)
        parts = EngineParts(
            built.chain, built.arena.rows, scheduler, sampler, limits, self._grammars, touch_ahead=built.arena.touch_ahead,
            moving=moving, viewing=Viewing(views) if views is not None else None, keeping=keeping,
            adapting=make_adapting(scheduler, built.arena, built.model),
            speculating=Speculating(proposers, scheduler) if proposers else None,
        )  # fmt: skip
        return Engine(parts)

    def views(self, ahead: int = AHEAD_PAGES) -> Views:
        """Fresh views for one engine; the bench must have been made with ``views``."""
        layout, limits = self.built.chain.page_layout, self.built.engine.limits
        longest = -(-limits.context_length // layout.tokens)
        return Views(self.built.arena, ViewPlan(self.built.arena.aliases // longest, longest), ahead=ahead)

    def prompt(self, tokens: int, rng: random.Random) -> list[int]:
        """Exactly that many tokens of running English text."""
        ids: list[int] = []
        while len(ids) < tokens:
            ids += self.tokenizer.encode(passage(tokens, rng))
        return ids[:tokens]


def run_all(engine: Engine, submits: Sequence[Submit], gaps: Iterable[int] = ()) -> dict[Key, Trace]:
    """Run requests to their ends. ``gaps``: steps to wait before each submit, 0 where it runs out.

    Raises RuntimeError when a request is refused: an experiment's own requests never may.
    """
    traces: dict[Key, Trace] = {}
    waiting, delays = list(submits), iter(gaps)
    delay = next(delays, 0)
    while waiting or engine.live:
        while waiting and (delay <= 0 or not engine.live):
            engine.submit(waiting.pop(0))
            delay = next(delays, 0)
        delay -= 1
        outputs = engine.step()
        for refused in engine.take_refused():
            raise RuntimeError(f"request {refused.request_id} was refused: {refused.message}")
        if outputs is None:
            engine.wait_compiled(0.05)
            continue
        for output in outputs.outputs:
            traces.setdefault((output.request_id, output.choice), Trace()).take(output)
    return traces
