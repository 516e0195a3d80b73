"""One run of conversations whose priorities change, and what is measured of it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import MoveGauges, Submit
from headrace.evaluation.trials import Key, Trace
from headrace.memory.free_runs import runs_of
from headrace.scheduling.item import Item, ItemState
from headrace.scheduling.priority_changes import PriorityChange, random_priorities
from headrace.scheduling.scheduler import Scheduler

_MOST_TURNS = 1000


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation: what its user says in each turn, as tokens, and how many tokens each answer has."""

    number: int
    turns: tuple[tuple[int, ...], ...]
    answer: int

    @property
    def length(self) -> int:
        """Tokens at its end."""
        return sum(map(len, self.turns)) + len(self.turns) * self.answer

    def submit(self, turn: int, before: Sequence[int]) -> Submit:
        """The request of a turn, behind the tokens that were said before. Each conversation is a share of its own."""
        params = SamplingParams(max_tokens=self.answer, temperature=0.0, ignore_eos=True, top_logprobs=2)
        return Submit(_MOST_TURNS * self.number + turn, [*before, *self.turns[turn]], params, share=str(self.number))


@dataclass(slots=True)
class Run:
    """``times``: when each token of each request came, from the start, and how often the request had been set aside by then;
    ``sent``: when each request was.

    ``step_seconds``: of each step. ``held`` and ``needed``: pages that items held after each step, summed, and the fewest that
    hold their tokens. ``taken``: pages handed out.
    """

    traces: dict[Key, Trace] = field(default_factory=dict)
    times: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    sent: dict[int, float] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    preemptions: int = 0
    recomputed: int = 0
    carried_seconds: float = 0.0
    disk_bytes: int = 0
    mean_run: float = 0.0
    held: int = 0
    needed: int = 0
    taken: int = 0
    moves: MoveGauges = field(default_factory=MoveGauges)

    def gaps(self) -> list[float]:
        """Times between tokens of one answer, sorted; those of answers that were set aside in between as well."""
        return sorted(b - a for times in self.times.values() for (a, _), (b, _) in pairwise(times))

    def running_gaps(self) -> list[float]:
        """Times between tokens of one answer that was not set aside in between, sorted."""
        return sorted(b - a for times in self.times.values() for (a, before), (b, after) in pairwise(times) if before == after)

    def first_tokens(self) -> list[float]:
        """Times from a request to its first token, sorted."""
        return sorted(times[0][0] - self.sent[request] for request, times in self.times.items())

    @property
    def tokens(self) -> int:
        """Tokens that were delivered."""
        return sum(map(len, self.times.values()))

    @property
    def tokens_a_second(self) -> float:
        """Tokens that were delivered, by the run's length."""
        return self.tokens / self.seconds


def preempt_some(scheduler: Scheduler, items: Sequence[Item], rng: random.Random) -> None:
    """A third of the running requests must go, needed or not."""
    running = [item for item in items if item.state is ItemState.RUNNING]
    for item in rng.sample(running, -(-len(running) // 3)):
        scheduler.preempt(item)


def preempt_and_reorder(scheduler: Scheduler, items: Sequence[Item], rng: random.Random) -> None:
    """As :func:`preempt_some`, and others go first afterwards."""
    preempt_some(scheduler, items, rng)
    random_priorities(scheduler, items, rng)


def preempt_all(scheduler: Scheduler, items: Sequence[Item], rng: random.Random) -> None:
    """Every running request must go, all the way."""
    for item in sorted(items, key=lambda one: rng.random()):
        scheduler.preempt(item)


def run(engine: Engine, talks: Sequence[Talk], pattern: PriorityChange | None, every: int, seed: int = 0) -> Run:
    """All conversations at once, each turn as soon as the one before is answered; the pattern disturbs each ``every`` steps.

    Closes the engine.
    """
    driver = _Driver(engine, {talk.number: talk for talk in talks}, random.Random(seed))
    before = _written_bytes()
    driver.drive(pattern, every)
    found = driver.found
    while engine.moving:
        engine.step()
    engine.check_integrity()
    counters, gauges, pool = engine.scheduler.counters, engine.gauges(), engine.scheduler.pool
    found.preemptions, found.recomputed = counters.preemptions, counters.recomputed
    found.moves = gauges.moves or MoveGauges()
    found.carried_seconds = engine._moving.mover.seconds if engine._moving is not None else 0.0
    found.disk_bytes = _written_bytes() - before
    found.taken = sum(map(pool.epoch, range(pool.total)))
    fullest = [mean for pages, mean in driver.runs if pages >= 0.9 * max(driver.runs)[0]]
    found.mean_run = sum(fullest) / max(1, len(fullest))
    engine.close()
    return found


class _Driver:
    """Sends turns and takes what comes."""

    def __init__(self, engine: Engine, talks: dict[int, Talk], rng: random.Random) -> None:
        self.found = Run()
        self.runs: list[tuple[int, float]] = []  # (pages held, mean run) after each step
        self._engine = engine
        self._talks = talks
        self._rng = rng
        self._aside: dict[int, int] = {}  # how often each request was set aside
        self._said: dict[int, list[int]] = {}
        self._began = 0.0

    def drive(self, pattern: PriorityChange | None, every: int) -> None:
        """Run all to the end."""
        engine, found = self._engine, self.found
        self._began = time.perf_counter()
        for talk in self._talks.values():
            self._send(talk, 0, [])
        while engine.live:
            began = time.perf_counter()
            outputs = engine.step()
            ended = time.perf_counter()
            if outputs is None:
                continue
            found.step_seconds.append(ended - began)
            self._aside.update((choice.request.submit.request_id, choice.item.preemptions) for choice in engine._choices.values())
            for output in outputs.outputs:
                trace = found.traces.setdefault((output.request_id, output.choice), Trace())
                trace.take(output)
                found.times.setdefault(output.request_id, []).extend(
                    [(ended - self._began, self._aside.get(output.request_id, 0))] * len(output.tokens)
                )
                if output.finish is not None:
                    self._answered(output.request_id, trace)
            self._look(pattern if len(found.step_seconds) % every == 0 else None)
        found.seconds = time.perf_counter() - self._began

    def _send(self, talk: Talk, turn: int, before: list[int]) -> None:
        submit = talk.submit(turn, before)
        self._said[submit.request_id] = submit.prompt
        self.found.sent[submit.request_id] = time.perf_counter() - self._began
        self._engine.submit(submit)

    def _answered(self, request: int, trace: Trace) -> None:
        number, turn = divmod(request, _MOST_TURNS)
        talk = self._talks[number]
        if turn + 1 < len(talk.turns):
            self._send(talk, turn + 1, self._said.pop(request) + trace.tokens)

    def _look(self, pattern: PriorityChange | None) -> None:
        """After a step: what is held, and the disturbance if one is due."""
        engine, found = self._engine, self.found
        pool = engine.scheduler.pool
        items = [choice.item for choice in engine._choices.values()]
        running = [item for item in items if item.pages]
        held = [item.pages for item in running]
        found.held += sum(map(len, held))
        found.needed += sum(pool.pages_for(item.computed) for item in running)
        self.runs.append((pool.held, sum(map(len, held)) / max(1, sum(len(runs_of(pages)) for pages in held))))
        if pattern is not None:
            pattern(engine.scheduler, items, self._rng)
            if pattern is preempt_all and engine._moving is not None:
                engine._moving.settle()


def _written_bytes() -> int:
    """Bytes that this process has caused to be written to storage, by the kernel's own count."""
    with open("/proc/self/io", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "write_bytes":
                return int(value)
    return 0
