"""The two sides of the experiment, and its sizes."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from itertools import islice

from headrace.engine.calibration import Calibration, calibrate
from headrace.engine.loop import Engine
from headrace.evaluation.experiment import Conditions
from headrace.evaluation.live_runs import Client, client
from headrace.evaluation.trials import Bench
from headrace.evaluation.workload import Lengths
from headrace.scheduling.cost import Cost
from headrace.scheduling.settings import SchedulingSettings

SPREAD = 0.3  # every length has this standard deviation, as a share of its mean
_LARGEST_STEP = 8192


@dataclass(frozen=True, slots=True)
class Sides:
    """A freshly calibrated bench, on which engines of both sides are made."""

    bench: Bench
    conditions: Conditions
    calibration: Calibration

    def split(self, step_tokens: int | None = None, gap_target_ms: int | None = None) -> Engine:
        """Prompts in pieces beside the running streams; the budget is the calibrated one where it is left open."""
        return self._engine(SchedulingSettings(step_tokens=step_tokens, gap_target_ms=gap_target_ms, prefix_reuse="off"))

    def whole(self) -> Engine:
        """Continuous batching with whole prompts, which run first; all streams share a step otherwise."""
        engine = self._engine(SchedulingSettings(policy="prompts_whole_first", prefix_reuse="off"))
        budget = engine.scheduler.budget
        engine.scheduler.budget = dataclasses.replace(budget, tokens=budget.items, capacity=_LARGEST_STEP)
        return engine

    def clients(self, count: int, prompt: float, output: float, seed: int = 0, each: int | None = None) -> list[Client]:
        """Clients with normal lengths of these means, of ``each`` requests or without end; the same seed gives the same."""
        rng = random.Random(self.conditions.seed * 1_000 + seed)
        lengths = Lengths("normal", prompt, SPREAD), Lengths("normal", output, SPREAD)
        return [islice(client(self.bench, *lengths, rng), each) for _ in range(count)]

    @property
    def knee(self) -> int:
        """Rows of a step, as calibrated."""
        return self.calibration.knee

    def _engine(self, scheduling: SchedulingSettings) -> Engine:
        cost = Cost.from_dict(self.calibration.cost.to_dict())  # each engine learns by itself, from the same start
        self.bench.built.calibration = dataclasses.replace(self.calibration, cost=cost)
        return self.bench.engine(scheduling)


def open_sides(bench: Bench, conditions: Conditions) -> Sides:
    """Calibrate anew: what was stored may come from a busier machine."""
    return Sides(bench, conditions, calibrate(bench.built.chain, bench.built.arena.bytes))
