"""Requests of every kind, and the runs of them that must give the same bits: what several experiments compare."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.evaluation.trials import Bench, SwapVariant, Traces, run_all
from headrace.kernels.native_chain import NativeChain
from headrace.scheduling.settings import SchedulingSettings
from headrace.text.grammar_spec import GrammarSpec

BUDGETS = (16, 48, 128, 256, 8192)
UNLIMITED = BUDGETS[-1]


@dataclass(frozen=True, slots=True)
class ExactLoad:
    """Requests and what each gave when it ran alone."""

    submits: tuple[Submit, ...]
    alone: Traces

    def same(self, traces: Traces) -> float:
        """Percent of the choices in ``traces`` that equal their run alone, tokens and logprobs to the bit."""
        return 100 * sum(trace == self.alone[key] for key, trace in traces.items()) / len(traces)


def budget_label(tokens: int) -> str:
    """How a budget is named in a table."""
    return "unlimited" if tokens == UNLIMITED else str(tokens)


def budgeted(bench: Bench, tokens: int) -> Engine:
    """An engine whose steps aim at that many rows, however long they take."""
    return bench.engine(SchedulingSettings(step_tokens=tokens, gap_target_ms=60_000))


def shuffled(bench: Bench, submits: Sequence[Submit], seed: int) -> Traces:
    """What the requests give when they come in random order, some steps apart."""
    rng = random.Random(seed)
    order = rng.sample(submits, len(submits))
    return run_all(budgeted(bench, 48), order, [rng.randrange(4) for _ in order])


def on_threads(bench: Bench, load: ExactLoad, threads: int) -> float:
    """Percent of choices that are the same bits when that many threads compute."""
    chain = bench.built.chain
    assert isinstance(chain, NativeChain), "the experiment runs on the native kernels"
    chain.set_threads(threads)
    try:
        return load.same(run_all(budgeted(bench, 128), load.submits))
    finally:
        chain.set_threads(bench.built.threads)


def on_scarce_pages(bench: Bench, load: ExactLoad, swap_folder: Path | None = None) -> tuple[float, int, int]:
    """(percent of choices that are the same bits, preemptions, pages written to the tier below) on too small a pool.

    Answers that end at once are run first: the scheduler then expects short ones, admits more than the pool can hold to the
    end, and must preempt.
    """
    page_tokens = bench.built.chain.page_layout.tokens
    pages = [-(-(len(one.prompt) + one.params.max_tokens) // page_tokens) for one in load.submits]
    swap = SwapVariant(folder=swap_folder) if swap_folder is not None else None
    engine = bench.engine(SchedulingSettings(step_tokens=128), max(pages) + 1, swap)
    ended = SamplingParams(max_tokens=100, logit_bias={bench.built.model.config.eos_ids[0]: 100.0})
    run_all(engine, [Submit(1_000_000 + number, load.submits[0].prompt[:8], ended) for number in range(8)])
    share = load.same(run_all(engine, load.submits))
    gauges = engine.gauges()
    engine.close()
    return share, gauges.preemptions, gauges.moves.written_pages if gauges.moves is not None else 0


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


def greedy_requests(bench: Bench, lengths: Sequence[int], outputs: Sequence[int], seed: int) -> tuple[Submit, ...]:
    """Greedy requests with logprobs: one a prompt length, outputs taken in turns."""
    rng = random.Random(seed)
    return tuple(
        Submit(
            index,
            bench.prompt(length, rng),
            SamplingParams(max_tokens=outputs[index % len(outputs)], temperature=0.0, top_logprobs=0),
        )
        for index, length in enumerate(lengths)
    )
