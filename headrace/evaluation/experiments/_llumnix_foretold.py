"""Two instances that exchange requests, or don't, under three loads: foretold and real."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count

from headrace.engine.settings import EngineSettings
from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.layout_costs import LayoutCost, measure_idle, rehearsal
from headrace.evaluation.layout_plans import COPY_RATE
from headrace.evaluation.rehearsal import drive, rehearse
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.planning.cluster import Outcome
from headrace.planning.instance import InstanceModel
from headrace.planning.search import Layout, Sample, run_at
from headrace.planning.targets import tail
from headrace.planning.workload import Lengths, TracedTraffic, Traffic
from headrace.scheduling.cost import Cost, StepTime
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.simulation import Arrival

_POOL_MIB = 32  # of both together: memory is what lacks, so that moves have something to do
_STEP_TOKENS = 64
_GAP_MS = 120
_RATES = (1.2, 2.0, 2.8)
"""Parts of what one request after the other would be, of one instance of two."""
_REHEARSED = 1.5
_TRAFFIC = Traffic(Lengths("lognormal", 60, 0.9), Lengths("lognormal", 60, 0.9), longest=600)


@dataclass(slots=True)
class Foretold:
    """What engines took in rehearsals, and what follows for a load. ``idle``: what steps take at least."""

    idle: LayoutCost
    heard: list[StepTime] = field(default_factory=list)
    seeds: count[int] = field(default_factory=lambda: count(1))

    @classmethod
    def measured(cls, conditions: Conditions) -> Foretold:
        """With what steps take at least of two instances of one thread each."""
        return cls(measure_idle(conditions.model, 2, 1, sorted(os.sched_getaffinity(0))[:2]))

    async def rehearse(self, group: InstanceGroup) -> None:
        """Learn from requests that are none of those which are foretold."""
        seed = next(self.seeds)
        for steps in await rehearse(group, rehearsal(self.idle, seed, _REHEARSED), -1000 * seed):
            self.heard += steps

    def cost(self) -> Cost:
        """Of steps as they are now."""
        return self.idle.calibration.cost.refitted(self.heard)

    def first_token(self, arrivals: Sequence[Arrival], *, moves: bool) -> float:
        """P99 of the first token."""
        pages = (_POOL_MIB // 2) * 2**20 // self.idle.page_bytes
        sends = self.idle.page_bytes / COPY_RATE
        model = InstanceModel(self.cost(), pages, _STEP_TOKENS, _GAP_MS / 1000, page_seconds=sends)
        traced = TracedTraffic(tuple(arrivals))
        layout = Layout("two", (model,) * 2, 1, "serving", balanced=moves)
        return _first_token(run_at(layout, Sample(traced, len(arrivals)), traced.rate))

    def rate(self) -> float:
        """Requests a second that one instance would serve one after the other."""
        calibration, (prompt, output) = self.idle.calibration, (1.5 * _TRAFFIC.prompt.a, 1.5 * _TRAFFIC.output.a)  # means
        seconds = calibration.cost.predict(_STEP_TOKENS, _STEP_TOKENS * int(prompt) // 2, 1) * prompt / _STEP_TOKENS
        return 1 / (seconds + output * calibration.cost.predict(1, int(prompt), 1))


def _first_token(outcome: Outcome) -> float:
    return tail([one.ttft for one in outcome.served], 99)


async def _started(conditions: Conditions, stack: AsyncExitStack, *, moves: bool) -> InstanceGroup:
    group = InstanceGroup(GroupOptions(2, round_seconds=0.1 if moves else 0.0))
    settings = EngineSettings(model=conditions.model, threads=2, pool_mib=_POOL_MIB, preempt="recompute")
    stack.push_async_callback(group.stop)
    await group.start(settings, SchedulingSettings(prefix_reuse="off", step_tokens=_STEP_TOKENS, gap_target_ms=_GAP_MS))
    return group


async def foretold_loads(conditions: Conditions, foretold: Foretold, seconds: float, times: int) -> list[Claim]:
    """Each load ``times`` times, with and without moves in turns, between rehearsals with other requests."""
    rates = [share * foretold.rate() for share in _RATES]
    loads = [tuple(_TRAFFIC.arrivals(rate, max(4, round(rate * seconds)), 11 + at)) for at, rate in enumerate(rates)]
    real: dict[tuple[int, bool], list[float]] = {}
    async with AsyncExitStack() as stack:
        groups = {moves: await _started(conditions, stack, moves=moves) for moves in (True, False)}
        for again in range(times):
            for at, arrivals in enumerate(loads):
                turn = (True, False) if (at + again) % 2 else (False, True)
                await foretold.rehearse(groups[turn[0]])
                for moves in turn:
                    outcome = await drive(groups[moves], arrivals, 1000 * at)
                    real.setdefault((at, moves), []).append(_first_token(outcome))
        moved = groups[True].relocation.counts.done
    return _claims(foretold, rates, loads, real, moved)


def _claims(
    foretold: Foretold, rates: list[float], loads: list[tuple[Arrival, ...]], real: dict[tuple[int, bool], list[float]], moved: int
) -> list[Claim]:
    errors, notes = [], []
    for (at, moves), times in sorted(real.items()):
        said, was = foretold.first_token(loads[at], moves=moves), statistics.median(times)
        errors.append(100 * abs(said / was - 1))
        notes.append(f"{rates[at]:.1f}/s {'with' if moves else 'without'} moves: {said:.2f} for {was:.2f} s")
    what, note = "P99 of the first token of two instances, foretold against real", f"{'; '.join(notes)}; {moved} moves"
    return [
        Claim("foretold_median", f"{what}, median error", "<=", 15, statistics.median(errors), "%", note),
        Claim("foretold_worst", f"{what}, worst of three loads with and without moves", "<=", 15, max(errors), "%"),
    ]
