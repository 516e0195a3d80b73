"""Moves of running requests between real engine processes: exactness, time out of the batch, emptying, making room, crashes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings
from headrace.evaluation.experiments._llumnix_foretold import Foretold, foretold_loads
from headrace.evaluation.experiments._llumnix_runs import Fleet, exact_moves, lost_engines, making_room, still_times, times_to_empty
from headrace.evaluation.experiments._llumnix_simulated import decision_claims, policy_claims


@dataclass(frozen=True, slots=True)
class _Scale:
    requests: int
    output: int
    lengths: tuple[int, ...]
    crashes: int
    room: int
    seconds: float
    times: int
    simulated: int


_QUICK = _Scale(5, 40, (256, 1024), 2, 3, 3.0, 1, 800)
_FULL = _Scale(24, 120, (256, 1024, 2048, 4096), 8, 5, 6.0, 3, 1500)
_PARTS = 7


def run(conditions: Conditions) -> Findings:
    """Every claim on two instances of one thread each."""
    return asyncio.run(_run(conditions, _QUICK if conditions.quick else _FULL))


async def _run(conditions: Conditions, scale: _Scale) -> Findings:
    claims: list[Claim] = []
    async with Fleet(conditions) as fleet:
        conditions.report("the same requests moved and unmoved", 0, _PARTS)
        exact = await exact_moves(fleet, scale.requests, scale.output, conditions.seed)
        claims += [
            Claim("exact", "requests moved while they ran", "==", 100.0, exact.same, "% same bits", f"{exact.moves} moves"),
            Claim("recomputed", "prompt tokens computed again because of moves", "==", 0, exact.recomputed, "tokens"),
            Claim("strays", "outputs of an engine that did not have the request", "==", 0, fleet.group.strays, "outputs"),
        ]
        conditions.report("time out of the batch by length", 1, _PARTS)
        still = await still_times(fleet, scale.lengths)
        shortest, longest = min(still.seconds), max(still.seconds)
        note = ", ".join(f"{length}: {1000 * one:.1f} ms" for length, one in zip(scale.lengths, still.seconds, strict=True))
        claims += [
            Claim("still_flat", "time out of the batch, longest request over shortest", "<=", 1.3, longest / shortest, "x", note),
            Claim("still_step", "the same in steps of the request itself", "<=", 1.0, longest / still.step, "steps"),
            Claim("still_recompute", "computing the longest again takes", ">=", 50, still.recompute / longest, "x"),
        ]
        conditions.report("an instance emptied", 2, _PARTS)
        emptied = await times_to_empty(fleet, scale.output)
        claims.append(Claim("empty", "emptying by moves against waiting for the end", ">=", 10, emptied, "x sooner"))
        conditions.report("engines killed and stopped", 3, _PARTS)
        kept = await lost_engines(fleet, scale.crashes, scale.output, conditions.seed)
        claims.append(Claim("crashes", "requests whose engine was killed under them", "==", 100.0, kept, "% same bits"))
    conditions.report("a long prompt between short requests", 4, _PARTS)
    with_moves, without = await making_room(conditions, scale.room)
    claims.append(Claim("room", "first token of a long prompt without moves over with", ">=", 1.5, without / with_moves, "x"))
    conditions.report("three loads with and without moves, foretold and real", 5, _PARTS)
    foretold = Foretold.measured(conditions)
    claims += await foretold_loads(conditions, foretold, scale.seconds, scale.times)
    conditions.report("policies over many instances, simulated", 6, _PARTS)
    claims += [*policy_claims(foretold.cost(), scale.simulated), *decision_claims()]
    return Findings(tuple(claims))


EXPERIMENT = Experiment(
    name="llumnix",
    title="Requests move between engines while they run: the same bits, a short pause, and room where it is needed.",
    source="Llumnix: Dynamic Scheduling for Large Language Model Serving (OSDI 2024)",
    minutes=5,
    run=run,
)
