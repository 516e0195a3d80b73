"""Conversations in turn, each turn asked with and without reuse, one right after the other."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import headrace
from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.evaluation.experiment import Conditions
from headrace.evaluation.trials import Bench, Trace
from headrace.scheduling.settings import SchedulingSettings

_OFF = SchedulingSettings(prefix_reuse="off")
_THINKING = 1.0  # seconds at most that a disk gets between two requests; people take longer to answer


@dataclass(frozen=True, slots=True)
class Talks:
    """``opening``: tokens of the first prompts; ``more``: what each turn adds; ``answer``: tokens of each answer."""

    count: int
    turns: int = 8
    opening: int = 160
    more: int = 16
    answer: int = 8

    def pages(self, page_tokens: int) -> int:
        """Pages that all conversations have at their ends."""
        return self.count * -(-(self.opening + (self.turns - 1) * self.more + self.turns * self.answer) // page_tokens)


@dataclass(slots=True)
class Asked:
    """What asking once gave: ``seconds`` to the first token, ``cached`` tokens of the prompt that were not computed."""

    trace: Trace = field(default_factory=Trace)
    seconds: float = 0.0
    cached: int = 0


@dataclass(slots=True)
class Run:
    """All turns: seconds to the first token by turn; prompt tokens in all, and those computed though they had been before."""

    reused: list[list[float]] = field(default_factory=list)
    computed: list[list[float]] = field(default_factory=list)
    same: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    again: int = 0
    after_restart: int = 0
    hits: int = 0
    written_pages: int = 0


def ask(engine: Engine, prompt: Sequence[int], answer: int) -> Asked:
    """One greedy request with logprobs, to its end."""
    params = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True, top_logprobs=1)
    asked, began = Asked(), time.perf_counter()
    engine.submit(Submit(1, list(prompt), params))
    while engine.live:
        outputs = engine.step()
        for output in outputs.outputs if outputs is not None else ():
            if not asked.trace.tokens:
                asked.seconds, asked.cached = time.perf_counter() - began, output.cached_tokens
            asked.trace.take(output)
    return asked


def openings(bench: Bench, talks: Talks, seed: int) -> list[list[int]]:
    """How the conversations begin."""
    rng = random.Random(seed)
    return [bench.prompt(talks.opening, rng) for _ in range(talks.count)]


def without(bench: Bench, pages: int) -> Engine:
    """An engine without reuse on pages of its own, so that it can be asked in turns with another."""
    engine = bench.engine(_OFF, pages)
    engine._pages = bench.built.arena.bytes[bench.built.arena.pages - pages :]
    return engine


def converse(bench: Bench, talks: Talks, folder: Path, conditions: Conditions) -> Run:
    """All conversations, one turn of each after the other, on a third of the pages; the engine is made anew at half time."""
    size = bench.built.chain.page_layout.tokens
    pages = talks.pages(size) // 3
    rng, result = random.Random(conditions.seed + 1), Run()
    said = openings(bench, talks, conditions.seed)
    seen = [0] * talks.count
    engine, off = bench.engine(None, pages, keep=folder), without(bench, min(pages, bench.built.arena.pages - pages))
    for turn in range(talks.turns):
        if turn == talks.turns // 2:
            _account(result, engine)
            engine = bench.engine(None, pages, keep=folder)
        result.reused.append([])
        result.computed.append([])
        for talk, prompt in enumerate(said):
            conditions.report("conversations", turn * talks.count + talk, talks.turns * talks.count)
            if (turn + talk) % 2:
                plain, reused = ask(off, prompt, talks.answer), ask(engine, prompt, talks.answer)
            else:
                reused, plain = ask(engine, prompt, talks.answer), ask(off, prompt, talks.answer)
            result.reused[-1].append(reused.seconds)
            result.computed[-1].append(plain.seconds)
            result.same += reused.trace == plain.trace
            result.asked += 1
            result.prompt_tokens += len(prompt)
            result.again += max(0, seen[talk] - reused.cached)
            result.after_restart += reused.cached if turn == talks.turns // 2 else 0
            seen[talk] = len(prompt) + talks.answer - 1
            said[talk] = [*prompt, *reused.trace.tokens, *bench.prompt(talks.more, rng)]
            if engine._keeping is not None:
                engine._keeping.settle(_THINKING)
    _account(result, engine)
    return result


def _account(result: Run, engine: Engine) -> None:
    engine.check_integrity()
    kept = engine.gauges().kept
    assert kept is not None, "the disk keeps pages"
    result.hits += kept.hits
    result.written_pages += kept.written_pages
    engine.close()


def fill_for_ever(folder: str, model: str, seed: int, talks: Talks) -> None:
    """Ask the openings again and again, keeping pages in ``folder``, with a line printed after each. Is meant to be killed."""
    conditions = Conditions(True, seed, model, 1, lambda *_: None)
    with Bench(conditions) as bench:
        engine = bench.engine(None, talks.pages(bench.built.chain.page_layout.tokens), keep=Path(folder))
        prompts, number = openings(bench, talks, seed), 0
        while True:
            ask(engine, prompts[number % len(prompts)], talks.answer)
            number += 1
            print(number, flush=True)


def after_kill(bench: Bench, talks: Talks, folder: Path, conditions: Conditions) -> tuple[int, int]:
    """(answers that are the same bits, tokens found on disk) after another process, that kept pages, was killed as it wrote."""
    module = "headrace.evaluation.experiments._prefix_reuse_runs"
    code = f"import {module} as m; m.fill_for_ever({str(folder)!r}, {conditions.model!r}, {conditions.seed}, m.{talks!r})"
    path = os.pathsep.join([str(Path(headrace.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= talks.count - 1:
                break
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    pages = talks.pages(bench.built.chain.page_layout.tokens)
    engine, off = bench.engine(None, pages, keep=folder), without(bench, pages)
    same = found = 0
    for prompt in openings(bench, talks, conditions.seed):
        reused = ask(engine, prompt, talks.answer)
        same += reused.trace == ask(off, prompt, talks.answer).trace
        found += reused.cached
        engine.check_integrity()
    engine.close()
    return same, found
