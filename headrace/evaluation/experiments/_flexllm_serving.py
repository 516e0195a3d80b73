"""Training beside requests: same bits on both sides, gaps under a target, bursts, and what is left for training."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.training import Training, TrainingParts
from headrace.engine.training_wire import StartTraining, TrainingCheckpoint, TrainingEnded, TrainingEvent
from headrace.engine.wire import Submit
from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.statistics import percentile
from headrace.evaluation.trials import Bench
from headrace.models.adapter_file import ADAPTER_WEIGHTS
from headrace.training.backbone import Backbone
from headrace.training.checkpoint import STATE
from headrace.training.dataset_file import Sample, write_dataset
from headrace.training.settings import TrainingSettings

_STREAMS = 4
ROW_TOKENS = 80  # of each sample: a pack takes one
_SMALL = TrainingSettings(rank=4, batch=2, epochs=1, max_tokens=96, learning_rate=1e-3)


@dataclass(slots=True)
class _Run:
    """What streams got: tokens by request, and seconds between their tokens; ``units`` of training that ran meanwhile."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    units: int = 0


class Beside:
    """Jobs and requests on one loaded model."""

    def __init__(self, bench: Bench, backbone: Backbone, folder: Path, seed: int) -> None:
        self._bench, self._backbone, self._folder = bench, backbone, folder
        self._rng = random.Random(seed)
        self._jobs = 0
        vocab = bench.built.model.config.vocab
        for name, count in (("data", 4), ("held", 2)):
            rows = [
                Sample(np.array(bench.prompt(ROW_TOKENS, self._rng), np.int32), np.ones(ROW_TOKENS, np.float32))
                for _ in range(count)
            ]
            write_dataset(folder / name, rows, vocab=vocab)

    @contextmanager
    def engine(self, target: float | None) -> Iterator[Engine]:
        """An engine that trains within ``target`` seconds a step."""
        built = self._bench.built
        engine = self._bench.engine()
        pool = engine.scheduler.pool
        parts = TrainingParts(
            built.model.config, lambda: self._backbone, pool, built.arena.rows, built.threads, pool.total // 2, target, 60.0
        )
        engine.training = Training(parts)
        engine.scheduler.lent = engine.training.holders
        yield engine
        engine.close()

    def start(self, engine: Engine, settings: TrainingSettings = _SMALL, weight: int = 1) -> str:
        """Begin a job; its name, which is that of its folder too."""
        assert engine.training is not None
        self._jobs += 1
        name = f"job {self._jobs}"
        folder, data, held = str(self._folder / name), str(self._folder / "data"), str(self._folder / "held")
        engine.training.start(StartTraining(name, settings, data, folder, held, weight=weight))
        return name

    def finish(self, engine: Engine) -> list[TrainingEvent]:
        """Run jobs to their ends on an idle engine."""
        assert engine.training is not None
        events: list[TrainingEvent] = []
        while engine.training.active:
            if not engine.train(lambda: False):
                time.sleep(0.001)
            events += engine.training.take_events()
        for event in events:
            if isinstance(event, TrainingEnded) and event.status != "succeeded":
                raise RuntimeError(f"{event.job}: {event.error}")
        return events

    def prepared(self, engine: Engine) -> None:
        """Wait until the jobs that have begun could run."""
        assert engine.training is not None
        while engine.training.preparing:
            time.sleep(0.002)
            engine.training.look()

    def streams(self, engine: Engine, prompts: list[list[int]], output: int) -> _Run:
        """Requests that come at once, units of training after each step's tokens."""
        run, before = _Run(), engine.gauges().training
        for number, prompt in enumerate(prompts):
            engine.submit(Submit(number, prompt, SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)))
        last: dict[int, float] = {}
        while engine.live:
            outputs = engine.step()
            now = time.perf_counter()
            for one in outputs.outputs if outputs is not None else ():
                run.tokens.setdefault(one.request_id, []).extend(one.tokens)
                if one.request_id in last:
                    run.gaps.append(now - last[one.request_id])
                last[one.request_id] = now
            engine.train(lambda: False)
        after = engine.gauges().training
        run.units = (after.units if after is not None else 0) - (before.units if before is not None else 0)
        return run

    def result(self, name: str) -> list[bytes]:
        """The bytes of a job's last checkpoint."""
        last = sorted((self._folder / name).glob("step-*"))[-1]
        return [(last / file).read_bytes() for file in (ADAPTER_WEIGHTS, STATE)]

    def prompts(self, count: int, tokens: int) -> list[list[int]]:
        """So many texts."""
        return [self._bench.prompt(tokens, self._rng) for _ in range(count)]


def beside(conditions: Conditions, load: Beside) -> list[Claim]:
    """All of it."""
    return [*_exact(conditions, load), *_gaps(conditions, load), *_burst(conditions, load), *_versions(conditions, load)]


def _exact(conditions: Conditions, load: Beside) -> list[Claim]:
    conditions.report("same bits", 0, 1)
    prompts = load.prompts(_STREAMS, 40)
    with load.engine(60.0) as engine:
        plain = load.streams(engine, prompts, 24)
    with load.engine(60.0) as engine:
        alone = load.start(engine)
        load.finish(engine)
    with load.engine(0.02) as engine:
        mixed = load.start(engine)
        other = load.start(engine, TrainingSettings(rank=2, targets=("q", "down"), epochs=1, max_tokens=96))
        load.prepared(engine)
        trained = load.streams(engine, prompts, 24)
        load.finish(engine)
    same = sum(trained.tokens[number] == tokens for number, tokens in plain.tokens.items())
    equal = load.result(alone) == load.result(mixed)
    note = f"{trained.units} units beside them, two jobs ({mixed}, {other})"
    return [
        Claim("serving_exact", "requests with the same tokens while two jobs train", "==", 100, 100 * same / len(prompts), "%",
              note),
        Claim("training_exact", "adapter and moments, trained beside requests and another job, as alone", "==", 1, float(equal), "",
              "bytes of the files compared"),
    ]  # fmt: skip


def _gaps(conditions: Conditions, load: Beside) -> list[Claim]:
    """Streams under a target of 1.5 times their own step, and under one of 4 times, with training on and off in turns."""
    rounds, output = (1, 48) if conditions.quick else (3, 96)
    prompts = load.prompts(_STREAMS, 16)
    with load.engine(0.0) as engine:
        load.streams(engine, prompts, 16)
        step = percentile(sorted(load.streams(engine, prompts, output).gaps), 50)
    claims = []
    for factor, claim in ((1.5, "target"), (4.0, "loose_target")):
        target, off, on, units = factor * step, list[float](), list[float](), 0
        for number in range(rounds):
            conditions.report(f"gaps under {factor:g} steps", number, rounds)
            with load.engine(target) as engine:
                off += load.streams(engine, prompts, output).gaps
                load.start(engine, TrainingSettings(rank=4, epochs=1000, max_tokens=96))
                load.prepared(engine)
                for _ in range(40):  # what units take is learnt first, and memory touched
                    engine.train(lambda: True)
                run = load.streams(engine, prompts, output)
                on += run.gaps
                units += run.units
        kept, without = (100 * sum(gap <= 1.1 * target for gap in side) / len(side) for side in (on, off))
        note = f"{without:.1f} % without; {units / (rounds * output):.2f} units a step, target {1e3 * target:.0f} ms"
        what = f"gaps within 1.1 x a target of {factor:g} steps while training, points below training off"
        claims.append(Claim(claim, what, "<=", 2.0, without - kept, "points", note))
        if factor > 2:
            claims.append(Claim("fills", "units a step under the loose target", ">=", 1.0, units / (rounds * output), "units"))
    return claims


def _burst(conditions: Conditions, load: Beside) -> list[Claim]:
    """16 prompts at once: no unit runs until they are read."""
    conditions.report("burst", 0, 1)
    with load.engine(1.0) as engine:
        load.start(engine, TrainingSettings(rank=4, epochs=1000, max_tokens=96))
        load.prepared(engine)
        engine.train(lambda: True)
        for number, prompt in enumerate(load.prompts(16, 60)):
            engine.submit(Submit(number, prompt, SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)))
        during, after = 0, list[int]()
        while engine.live:
            before = engine.gauges().training
            reading = engine.scheduler.unread > 0
            engine.step()
            reading = reading and engine.scheduler.unread > 0
            engine.train(lambda: False)
            now = engine.gauges().training
            assert before is not None
            assert now is not None
            if reading:
                during += now.units - before.units
            elif engine.live:
                after.append(now.units - before.units)
    back = next((step for step, units in enumerate(after) if units), len(after)) + 1
    return [
        Claim("burst", "units of training while prompts of a burst are read", "==", 0, during, "units"),
        Claim("burst_back", "steps after it until training goes on", "<=", 3, back, "steps"),
    ]


def _versions(conditions: Conditions, load: Beside) -> list[Claim]:
    """A job's checkpoints on text that it learns: the loss on the held text falls from version to version."""
    epochs = 2 if conditions.quick else 5
    conditions.report("versions", 0, 1)
    with load.engine(60.0) as engine:
        settings = TrainingSettings(
            rank=8, epochs=epochs, batch=2, max_tokens=96, learning_rate=3e-4, schedule="constant", warmup=0.0
        )
        load.start(engine, settings)
        events = load.finish(engine)
    found = [event.validation_loss for event in events if isinstance(event, TrainingCheckpoint)]
    known = [loss for loss in found if loss is not None]
    falls = sum(second < first for first, second in pairwise(known))
    note = " ".join(f"{loss:.3f}" for loss in known)
    return [Claim("versions", "checkpoints whose loss on held text is below the one before", "==", epochs - 1, falls, "", note)]
