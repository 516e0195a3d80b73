"""A draft model measured: a model in 16 bits for which its own 4-bit form guesses, in conversation, greedy and drawn."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import msgspec

from headrace.engine.build import BuildOptions, BuiltEngine, build_engine
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.evaluation.experiment import Claim, Conditions, interleave
from headrace.evaluation.experiments._smartspec_setup import TALKS, Spell, rendered, together, undisturbed
from headrace.evaluation.trials import run_all
from headrace.scheduling.settings import SchedulingSettings

_PLAIN = SchedulingSettings(gap_target_ms=60_000, prefix_reuse="off")
_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class _Pair:
    """The model without a draft and with one."""

    plain: BuiltEngine
    drafted: BuiltEngine


def drafts(conditions: Conditions) -> list[Claim]:
    """One stream at a time: the speed with the draft over that without, and whether any token is another."""
    conditions.report("a model in 16 bits, its 4-bit form drafts", 0, 2)
    built = [_build(conditions, speculation) for speculation in ("off", f"draft:{conditions.model}")]
    try:
        pair = _Pair(*built)
        return [claim for temperature in (0.0, _TEMPERATURE) for claim in _claims(pair, temperature, conditions)]
    finally:
        for one in built:
            one.close()


def _build(conditions: Conditions, speculation: str) -> BuiltEngine:
    settings = EngineSettings(
        model=conditions.model, weights="bf16", threads=conditions.threads, speculation=speculation, pool_mib=256
    )
    return build_engine(settings, BuildOptions(scheduling=_PLAIN))


def _claims(pair: _Pair, temperature: float, conditions: Conditions) -> list[Claim]:
    conditions.report("a model in 16 bits, its 4-bit form drafts", 1, 2)
    tokens, rounds = (40, 2) if conditions.quick else (96, 5)
    ratios, steps, same = [], 0, 0
    for submit in rendered(pair.plain.model, TALKS, tokens).values():
        asked = msgspec.structs.replace(submit, params=msgspec.structs.replace(submit.params, temperature=temperature, seed=1))
        same += run_all(pair.plain.engine, [asked]) == run_all(pair.drafted.engine, [asked])
        off, on = interleave([functools.partial(_spell, one, asked) for one in (pair.plain, pair.drafted)], rounds)
        ratios.append(undisturbed(on) / undisturbed(off))
        steps += on[0].steps
    kind = f"drawn at {temperature}" if temperature else "greedy"
    name = "drawn" if temperature else "greedy"
    mean = math.prod(ratios) ** (1 / len(ratios))
    note = f"{len(TALKS)} conversations of {tokens} tokens in {steps} steps"
    what = f"speed of one stream in 16 bits, drafted by the same model's 4-bit form / alone, {kind}"
    return [
        Claim(f"draft_exact_{name}", f"conversations with the same tokens with a draft model, {kind}", "==", len(TALKS), same),
        Claim(f"draft_{name}", what, ">=", 1.15, mean, "x", note),
    ]


def _spell(built: BuiltEngine, submit: Submit) -> Spell:
    return together(built.engine, [submit])
