"""Adapters of the experiment on disk, and engines that have them registered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.engine.loop import Engine
from headrace.engine.wire import AdapterUse
from headrace.evaluation.adapter_speed import random_adapter
from headrace.evaluation.live_runs import LiveRun, Planned, Window
from headrace.evaluation.trials import Bench
from headrace.models.adapter import MODULES
from headrace.models.adapter_file import write_adapter
from headrace.models.config import ModelConfig

ATTENTION = ("q", "k", "v", "o")
"""What the paper adapts."""

RANKS = (64, 32, 16, 8)
"""The published mix S2, dealt in turns."""

_SETS = (ATTENTION, ("q", "v"), MODULES, ("gate", "up", "down"))


def write_random(config: ModelConfig, folder: Path, shapes: Sequence[tuple[int, Sequence[str]]], seed: int) -> list[Path]:
    """A folder for each (rank, modules), each with numbers of its own."""
    made = []
    for index, (rank, modules) in enumerate(shapes):
        path = folder / f"{index}-r{rank}-{''.join(name[0] for name in modules)}"
        write_adapter(path, random_adapter(config, rank, seed + index, modules))
        made.append(path)
    return made


def mixed_shapes(count: int) -> list[tuple[int, Sequence[str]]]:
    """Ranks of the published mix and 4, in all target sets; large ranks only where they stay small."""
    ranks = (*RANKS, 4)
    shapes: list[tuple[int, Sequence[str]]] = []
    for index in range(count):
        rank = ranks[index % len(ranks)]
        shapes.append((rank, _SETS[index // 2 % 4] if rank < 32 else ("q", "v")))
    return shapes


def register(engine: Engine, folders: Sequence[Path], times: int = 1) -> list[int]:
    """Generations of the folders, each under ``times`` names."""
    assert engine.adapting is not None, "engines of a bench have adapters"
    return [
        engine.adapting.register(f"{number}.{index}", folder).generation
        for number in range(times) for index, folder in enumerate(folders)
    ]  # fmt: skip


def preload(engine: Engine, generations: Sequence[int]) -> None:
    """Bring them into pages now, as far as the pool goes."""
    assert engine.adapting is not None, "engines of a bench have adapters"
    for generation in generations:
        if not engine.adapting.adapters.store.get(generation).pages:
            engine.adapting.adapters.load(generation)


def zipf(count: int, exponent: float, rng: random.Random) -> int:
    """An index below ``count``, the first ones most often."""
    return rng.choices(range(count), [1 / (rank + 1) ** exponent for rank in range(count)])[0]


def _uses(generation: int | None) -> tuple[AdapterUse, ...]:
    return () if generation is None else (AdapterUse(generation),)


@dataclass(frozen=True, slots=True)
class Streams:
    """Requests that come all at once: ``prompt`` and ``output`` tokens each."""

    bench: Bench
    prompt: int
    output: int
    seed: int

    def planned(self, uses: Sequence[int | None]) -> list[Planned]:
        """One for each generation (``None``: the base alone) in that order, with the same texts every time."""
        rng = random.Random(self.seed)
        return [
            Planned(self.bench.prompt(self.prompt, rng), self.output, 1e-6 * number, "", _uses(one))
            for number, one in enumerate(uses)
        ]  # fmt: skip

    def run(self, engine: Engine, uses: Sequence[int | None]) -> Window:
        """To their ends."""
        with LiveRun(engine) as live:
            live.schedule(self.planned(uses))
            return live.run()
