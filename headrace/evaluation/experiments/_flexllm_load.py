"""Requests that come by themselves, at shares of what the engine can bear, while it trains beside them, in turns, or not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.training_wire import TrainingGauges
from headrace.engine.wire import Submit
from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.experiments._flexllm_serving import ROW_TOKENS, Beside
from headrace.evaluation.statistics import percentile
from headrace.scheduling.training_share import ServingLoad
from headrace.training.settings import TrainingSettings

_STREAMS = 8  # at a time, when the engine has all that it can bear
_PROMPT, _OUTPUT = 24, 32
_STEPS = 4.0  # the target, in steps of one stream
_STALL = 2.0  # targets: a request with a longer gap was not served as promised
_FOREVER = TrainingSettings(rank=4, epochs=1000, max_tokens=96, checkpoint_every=1_000_000)


@dataclass(slots=True)
class _Served:
    """``worst``: the longest gap of each request. ``units`` of training that ran meanwhile."""

    seconds: float = 0.0
    units: int = 0
    worst: dict[int, float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Units a second that training got: all packs have the same ones, so they tell more than packs that are over."""
        return self.units / self.seconds

    def kept(self, target: float) -> float:
        """Requests without a stall, in %."""
        return 100 * sum(gap <= _STALL * target for gap in self.worst.values()) / len(self.worst)


Turn = Callable[[Engine, float, float], object]
"""What training gets behind a step: the engine, the time now and that of the next arrival, both in seconds from the start."""


def _nothing(engine: Engine, now: float, following: float) -> None:
    """Serving alone."""


def _beside(began: float, engine: Engine, now: float, following: float) -> None:
    """Co-serving, as the engine's process does it: whatever comes ends it."""
    engine.train(lambda: time.perf_counter() - began >= following)


def _in_turns(pace: float, first: int, engine: Engine, now: float, following: float) -> None:
    """Temporal sharing: a whole pack forwards and backwards whenever training is behind ``pace`` units a second."""
    if _counts(engine).units - first < pace * now:
        _train_pack(engine)


def _paced(pace: float, began: float, first: int) -> Turn:
    return partial(_in_turns, pace, first)


def _train_pack(engine: Engine) -> None:
    """A whole pack, which is one row here."""
    training, before = engine.training, _counts(engine).tokens
    assert training is not None
    while _counts(engine).tokens < before + ROW_TOKENS:
        if not training.run(ServingLoad(0, 0, 0.0), lambda: _counts(engine).tokens >= before + ROW_TOKENS):
            time.sleep(0.001)
        training.take_events()


def _counts(engine: Engine) -> TrainingGauges:
    return (engine.training.gauges() if engine.training is not None else None) or TrainingGauges()


class Sweep:
    """Arrivals at shares of the engine's capacity."""

    def __init__(self, conditions: Conditions, load: Beside) -> None:
        self._conditions, self._load = conditions, load
        self._seconds = 3.0 if conditions.quick else 5.0
        self._rng = random.Random(conditions.seed)
        with load.engine(0.0) as engine:
            prompts = load.prompts(_STREAMS, _PROMPT)
            load.streams(engine, prompts, 4)
            self.target = _STEPS * percentile(sorted(load.streams(engine, prompts[:1], 2 * _OUTPUT).gaps), 50)
            began = time.perf_counter()
            load.streams(engine, prompts, _OUTPUT)
            self.capacity = _STREAMS / (time.perf_counter() - began)  # requests a second
        with self._training() as engine:
            before, began = _counts(engine), time.perf_counter()
            for _ in range(1 if conditions.quick else 3):
                _train_pack(engine)
            after, seconds = _counts(engine), time.perf_counter() - began
            self.idle = (after.units - before.units) / seconds
            self.tokens = (after.tokens - before.tokens) / (after.units - before.units)  # a unit

    @contextmanager
    def _training(self) -> Iterator[Engine]:
        """An engine with a job of which one pack is over: memory is touched, and all kinds of units have been seen."""
        with self._load.engine(self.target) as engine:
            self._load.start(engine, _FOREVER)
            self._load.prepared(engine)
            _train_pack(engine)
            yield engine

    def claims(self) -> list[Claim]:
        """Every share of the capacity, with each way to share."""
        claims, speeds = [], list[float]()
        shares = (60,) if self._conditions.quick else (30, 60, 90)
        for number, share in enumerate(shares):
            self._conditions.report("requests by themselves", number, len(shares))
            arrivals = self._arrivals(share / 100)
            alone = self._serve(arrivals, lambda began, first: _nothing)
            both = self._serve(arrivals, lambda began, first: partial(_beside, began))
            turns = self._serve(arrivals, partial(_paced, both.speed))
            kept = [one.kept(self.target) for one in (alone, both, turns)]
            speeds.append(both.speed)
            note = (
                f"{kept[0]:.0f} % alone, {kept[1]:.0f} % beside training at {both.speed * self.tokens:.0f} tokens/s; "
                f"{self.target * 1e3:.0f} ms, {len(arrivals)} requests"
            )
            what = f"requests without a gap above 2 targets at {share} % of capacity, points below training off"
            claims.append(Claim(f"kept_{share}", what, "<=", 2.0, kept[0] - kept[1], "points", note))
            told = f"{kept[2]:.0f} % in turns at {turns.speed * self.tokens:.0f} tokens/s"
            what = f"the same requests, points above training as much in phases of its own, at {share} %"
            claims.append(Claim(f"turns_{share}", what, ">=", 10.0, kept[1] - kept[2], "points", told))
        pairs = list(zip(shares, speeds, strict=True))
        note = ", ".join(f"{speed * self.tokens:.0f} tokens/s at {share} %" for share, speed in pairs)
        note = f"{note}, {self.idle * self.tokens:.0f} alone; {self.capacity:.1f} requests/s"
        best = max(share / 100 + speed / self.idle for share, speed in pairs)
        what = "best sum of the shares that serving and training have of what each has alone"
        claims.append(Claim("shares", what, ">=", 1.25, best, "", note))
        return claims

    def _arrivals(self, share: float) -> list[tuple[float, list[int]]]:
        """(second, prompt), at random moments of a rate."""
        times, at = list[float](), self._rng.expovariate(share * self.capacity)
        while at < self._seconds or len(times) < _STREAMS:
            times.append(at)
            at += self._rng.expovariate(share * self.capacity)
        return list(zip(times, self._load.prompts(len(times), _PROMPT), strict=True))

    def _serve(self, arrivals: list[tuple[float, list[int]]], way: Callable[[float, int], Turn]) -> _Served:
        with self._training() as engine:
            before, began = _counts(engine).units, time.perf_counter()
            served = _run(engine, arrivals, began, way(began, before))
            served.seconds, served.units = time.perf_counter() - began, _counts(engine).units - before
        return served


def _run(engine: Engine, arrivals: list[tuple[float, list[int]]], began: float, turn: Turn) -> _Served:
    served, last, coming = _Served(), dict[int, float](), 0
    while coming < len(arrivals) or engine.live:
        now = time.perf_counter() - began
        while coming < len(arrivals) and arrivals[coming][0] <= now:
            params = SamplingParams(max_tokens=_OUTPUT, temperature=0.0, ignore_eos=True)
            engine.submit(Submit(coming, arrivals[coming][1], params))
            coming += 1
        following = arrivals[coming][0] if coming < len(arrivals) else float("inf")
        outputs = engine.step()
        now = time.perf_counter() - began
        for one in outputs.outputs if outputs is not None else ():
            number = one.request_id
            served.worst[number] = max(served.worst.get(number, 0.0), now - last.get(number, now))
            last[number] = now
        turn(engine, now, following)
        if engine.training is not None:
            engine.training.take_events()
        if not engine.live and following < float("inf"):
            time.sleep(max(0.0, min(0.001, following - (time.perf_counter() - began))))
    return served
