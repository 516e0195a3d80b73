"""What an engine is made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from headrace.engine.adapting import Adapting
from headrace.engine.keeping import DiskKeeping
from headrace.engine.moving import Moving
from headrace.engine.request import Grammar, Limits
from headrace.engine.sampling_params import GrammarSpec
from headrace.engine.speculating import Speculating
from headrace.engine.training import Training
from headrace.engine.viewing import Viewing
from headrace.kernels.interface import Bytes, ChainRunner
from headrace.kernels.sampler import Sampler
from headrace.scheduling.scheduler import Scheduler


class GrammarSource(Protocol):
    """Compiles grammars for one tokenizer."""

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Compile a grammar. Raises ``invalid_grammar``. Runs on the compiler's thread."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is made of.

    ``pages``: the pool's bytes, [pages, page_bytes], with rows for aliases behind them where there is ``viewing``.
    ``touch_ahead`` is told before each step how many of the first pages are in use. ``grammars``: ``None`` refuses grammars.
    ``moving``: for a scheduler that swaps. ``viewing``: so that each sequence's pages can be read one after the other.
    ``keeping``: for a scheduler with a disk below its prefix index. ``adapting``: ``None`` refuses adapters, ``training`` jobs.
    ``speculating``: ``None`` never drafts.
    """

    chain: ChainRunner
    pages: Bytes
    scheduler: Scheduler
    sampler: Sampler
    limits: Limits
    grammars: GrammarSource | None = None
    clock: Callable[[], float] = time.monotonic
    touch_ahead: Callable[[int], object] = int
    moving: Moving | None = None
    viewing: Viewing | None = None
    keeping: DiskKeeping | None = None
    adapting: Adapting | None = None
    training: Training | None = None
    speculating: Speculating | None = None
