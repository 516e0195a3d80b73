"""Determinism: a request's tokens and logprobs don't depend on what else the engine does, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings
from headrace.evaluation.trials import Bench, Trace, Traces, run_all
from headrace.kernels.native_chain import NativeChain
from headrace.scheduling.settings import SchedulingSettings
from headrace.text.grammar_spec import GrammarSpec

BUDGETS = (16, 48, 128, 256, 8192)
UNLIMITED = BUDGETS[-1]


@dataclass(frozen=True, slots=True)
class _Load:
    """The requests of the experiment and what each gave when it ran alone."""

    submits: tuple[Submit, ...]
    alone: Traces

    def same(self, traces: Traces) -> float:
        """Percent of the choices in ``traces`` that equal their run alone, tokens and logprobs to the bit."""
        return 100 * sum(trace == self.alone[key] for key, trace in traces.items()) / len(traces)


def mixed_requests(bench: Bench, count: int, longest: int, seed: int) -> tuple[Submit, ...]:
    """Requests of every kind: prompts from 1 token up, greedy and sampled, filters, penalties, logprobs, choices, grammars."""
    rng = random.Random(seed)
    kinds: tuple[Callable[[int], SamplingParams], ...] = (
        lambda n: SamplingParams(max_tokens=n, temperature=0.0, top_logprobs=2),
        lambda n: SamplingParams(max_tokens=n, temperature=0.9, seed=n, top_logprobs=0),
        lambda n: SamplingParams(max_tokens=n, temperature=1.2, top_p=0.9, top_k=50, min_p=0.01, seed=n, top_logprobs=1),
        lambda n: SamplingParams(max_tokens=n, temperature=0.0, repetition_penalty=1.2, frequency_penalty=0.5, top_logprobs=0),
        lambda n: SamplingParams(max_tokens=n, temperature=1.0, seed=n, n=3, top_logprobs=0, presence_penalty=0.4),
        lambda n: SamplingParams(max_tokens=n, temperature=0.0, prompt_logprobs=1, logit_bias={17: -5.0, 30: 2.0}, top_logprobs=1),
        lambda n: SamplingParams(
            max_tokens=n, temperature=0.8, seed=n, grammar=GrammarSpec("regex", "[a-z ]{12,60}"), top_logprobs=0
        ),
    )
    made = []
    for index in range(count):
        length = rng.choice((1, 2, 15, 16, 17, rng.randrange(3, longest), longest - 1, longest))
        params = kinds[index % len(kinds)](rng.randrange(4, 25))
        made.append(Submit(index, bench.prompt(length, rng), params))
    return tuple(made)


def run(conditions: Conditions) -> Findings:
    """Run the same requests alone and in every other way, and count what differs."""
    count, longest = (14, 90) if conditions.quick else (64, 400)
    with Bench(conditions) as bench:
        submits = mixed_requests(bench, count, longest, conditions.seed)
        alone: dict[tuple[int, int], Trace] = {}
        for number, submit in enumerate(submits):
            conditions.report("each request alone", number, count)
            alone |= run_all(bench.engine(), [submit])
        load = _Load(submits, alone)
        ways = _ways(bench, load, conditions.seed)
        claims = []
        for number, (claim_id, (what, way)) in enumerate(ways.items()):
            conditions.report(what, number, len(ways))
            claims.append(Claim(claim_id, what, "==", 100.0, way(), "% same bits", f"{len(alone)} choices"))
        share, preemptions = _small_pool(bench, load)
        claims.append(Claim("preempt", "pool too small: preempted and recomputed", "==", 100.0, share, "% same bits"))
        claims.append(Claim("preemptions", "preemptions in that run", ">=", 1, preemptions, "preemptions"))
    return Findings(tuple(claims))


def _ways(bench: Bench, load: _Load, seed: int) -> Mapping[str, tuple[str, Callable[[], float]]]:
    """Everything that must make no difference, by claim id."""
    ways: dict[str, tuple[str, Callable[[], float]]] = {}
    for budget in BUDGETS:
        label = "unlimited" if budget == UNLIMITED else str(budget)
        ways[f"budget_{label}"] = (
            f"all together, step budget {label}",
            partial(_with_budget, bench, load, budget),
        )
    ways["arrival"] = ("random arrival order and times", lambda: _shuffled(bench, load, seed))
    for threads in (1, 2):
        ways[f"threads_{threads}"] = (
            f"all together, {threads} thread{'s' * (threads > 1)}",
            partial(_threads, bench, load, threads),
        )
    ways["forks"] = ("choices without forks: each prompt computed again", lambda: _without_forks(bench, load))
    ways["whole"] = ("prompts whole and first", lambda: _whole_prompts(bench, load))
    return ways


def _budgeted(bench: Bench, tokens: int) -> Engine:
    return bench.engine(SchedulingSettings(step_tokens=tokens, gap_target_ms=60_000))


def _with_budget(bench: Bench, load: _Load, tokens: int) -> float:
    return load.same(run_all(_budgeted(bench, tokens), load.submits))


def _shuffled(bench: Bench, load: _Load, seed: int) -> float:
    rng = random.Random(seed + 1)
    order = rng.sample(load.submits, len(load.submits))
    return load.same(run_all(_budgeted(bench, 48), order, [rng.randrange(4) for _ in order]))


def _threads(bench: Bench, load: _Load, threads: int) -> float:
    chain = bench.built.chain
    assert isinstance(chain, NativeChain), "the experiment runs on the native kernels"
    chain.set_threads(threads)
    try:
        return load.same(run_all(_budgeted(bench, 128), load.submits))
    finally:
        chain.set_threads(bench.built.threads)


def _without_forks(bench: Bench, load: _Load) -> float:
    """Choice 0 of a request with n choices is the same request with one: no fork, no shared page."""
    single = [
        msgspec.structs.replace(one, params=msgspec.structs.replace(one.params, n=1)) for one in load.submits if one.params.n > 1
    ]
    return load.same(run_all(_budgeted(bench, 128), single))


def _small_pool(bench: Bench, load: _Load) -> tuple[float, int]:
    longest = max(len(one.prompt) + one.params.max_tokens for one in load.submits)
    pages = 3 * (longest // bench.built.chain.page_layout.tokens + 2)
    engine = bench.engine(SchedulingSettings(step_tokens=128), pages)
    return load.same(run_all(engine, load.submits)), engine.scheduler.counters.preemptions


def _whole_prompts(bench: Bench, load: _Load) -> float:
    return load.same(run_all(bench.engine(SchedulingSettings(policy="prompts_whole_first")), load.submits))


EXPERIMENT = Experiment(
    name="determinism",
    title="A request's tokens and logprobs are the same bits alone and in any company.",
    source="the engine's own law: integer products, and float sums whose order depends on the row alone",
    minutes=4,
    run=run,
)
