"""Tokens drawn behind drafts, on a real model: as often as the model says, of its fifty likeliest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.experiments._smartspec_setup import FixedTimes, Forced
from headrace.evaluation.statistics import Fit
from headrace.evaluation.trials import Bench, run_all
from headrace.kernels.interface import Float32, StepBatch
from headrace.scheduling.settings import SchedulingSettings

_PLAIN = SchedulingSettings(gap_target_ms=60_000)
_PROMPT = "The capital of France is"
_TOP, _TOKENS, _CHOICES = 50, 3, 16
_AT_ONCE = 32  # requests that are submitted together


def distribution(bench: Bench, conditions: Conditions) -> list[Claim]:
    """Many short answers to one prompt, drawn while the greedy answer is drafted; chi² of those that begin as it does."""
    conditions.report("drawn tokens", 0, 1)
    prompt = bench.tokenizer.encode(_PROMPT)
    greedy = SamplingParams(max_tokens=_TOKENS, temperature=0.0, ignore_eos=True)
    [likely] = [trace.tokens for trace in run_all(bench.engine(_PLAIN), [Submit(0, prompt, greedy)]).values()]
    engine = bench.engine(_PLAIN, proposers=[Forced({tuple(prompt): likely}, [1.0], 0)])
    engine.scheduler.cost = FixedTimes()
    submits = [
        Submit(number, prompt, SamplingParams(max_tokens=_TOKENS, n=_CHOICES, top_k=_TOP, seed=number, ignore_eos=True))
        for number in range(20 if conditions.quick else 200)
    ]
    parts = (submits[first : first + _AT_ONCE] for first in range(0, len(submits), _AT_ONCE))
    said = [trace.tokens for part in parts for trace in run_all(engine, part).values()]
    fit, drawn = Fit(), 0
    for place in range(1, _TOKENS):
        counts = Counter(tokens[place] for tokens in said if tokens[:place] == likely[:place])
        chances = _chances(_logits(bench, [*prompt, *likely[:place]]))
        strange = sum(count for token, count in counts.items() if token not in chances)
        fit.add([counts[token] for token in chances] + [strange], [*chances.values(), 0.0])
        drawn += counts.total()
    counted = engine.gauges().speculation
    assert counted is not None, "the engine drafts"
    note = f"chi² over {fit.freedom + 1} kinds of {drawn} tokens; {counted.drafted} drafted ones verified, {counted.accepted} right"
    what = f"p of drawn tokens against the chances of the model's {_TOP} likeliest, behind drafts"
    return [Claim("distribution", what, ">=", 0.01, fit.p, "", note)]


def _chances(logits: Float32) -> dict[int, float]:
    """Of the likeliest tokens."""
    best = np.lexsort((np.arange(len(logits)), -logits))[:_TOP]
    raw = np.exp(logits[best].astype(np.float64) - float(logits[best[0]]))
    return dict(zip(best.tolist(), (raw / raw.sum()).tolist(), strict=True))


def _logits(bench: Bench, tokens: Sequence[int]) -> Float32:
    """Behind these tokens, from the chain itself; no engine may be using the pages."""
    count, layout = len(tokens), bench.built.chain.page_layout
    pages = np.arange(-(-count // layout.tokens), dtype=np.int32)
    batch = StepBatch(
        token_ids=np.array(tokens, np.int32), positions=np.arange(count, dtype=np.int32),
        slice_starts=np.array([0, count], np.int32), page_starts=np.array([0, len(pages)], np.int32), page_ids=pages,
        output_rows=np.array([count - 1], np.int32),
    )  # fmt: skip
    bench.built.chain.forward(batch, bench.built.arena.rows)
    logits: Float32 = bench.built.chain.logits(0, 1)[0].copy()
    return logits
