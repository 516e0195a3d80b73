"""Fine-tuning in a running engine on the bundled model: tokens and adapters are the same bits whoever else is at work."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.engine.build import BuiltEngine, build_engine
from headrace.engine.client import EngineClient
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.training import Training, TrainingParts
from headrace.engine.training_memory import JobPages
from headrace.engine.training_wire import StartTraining, StopTraining, TrainingCheckpoint, TrainingEnded, TrainingProgress
from headrace.engine.wire import AdapterUse, Submit, TokenOutput
from headrace.models.adapter_file import ADAPTER_WEIGHTS
from headrace.training.backbone import Backbone
from headrace.training.checkpoint import STATE
from headrace.training.dataset_file import Sample, write_dataset
from headrace.training.settings import TrainingSettings

pytestmark = pytest.mark.model

PROMPT = [504, 3575, 282, 4649, 314, 260, 1234]
TARGETS = TrainingSettings(rank=2, targets=("q", "v", "down"), batch=2, epochs=2, max_tokens=32, learning_rate=1e-2)
_ids = itertools.count(1)


@dataclass(frozen=True)
class Bench:
    built: BuiltEngine
    folder: Path

    def start(self, name: str, settings: TrainingSettings = TARGETS, **more: Any) -> StartTraining:
        return StartTraining(name, settings, str(self.folder / "data"), str(self.folder / name), **more)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("training")
    draws = np.random.default_rng(1)
    rows = [Sample(draws.integers(0, 49152, 14).astype(np.int32), np.ones(14, np.float32)) for _ in range(2)]
    write_dataset(folder / "data", rows, vocab=49152)
    built = build_engine(EngineSettings(threads=2, pool_mib=256, context_length=256))
    read_once = Backbone(built.model.config, built.model.weights)
    engine, pool = built.engine, built.engine.scheduler.pool
    parts = TrainingParts(built.model.config, lambda: read_once, pool, built.arena.rows, 2, pool.total // 2, 100.0, 100.0)
    training = Training(parts)  # every step leaves room
    training.adapting, engine.training, engine.scheduler.lent = engine.adapting, training, training.holders
    yield Bench(built, folder)
    built.close()


def generate(bench: Bench, uses: list[AdapterUse], *, train: bool) -> list[int]:
    """A request's tokens, with one unit of training after each step or none."""
    engine, found = bench.built.engine, list[int]()
    engine.submit(Submit(next(_ids), PROMPT, SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True), adapters=uses))
    while engine.live:
        outputs = engine.step()
        if train:
            engine.train(lambda: True)
        engine.check_integrity()
        for output in outputs.outputs if outputs is not None else ():
            assert isinstance(output, TokenOutput)
            found += output.tokens
        engine.wait_compiled(1.0)
    return found


def finish(bench: Bench, most: int = 100_000) -> list[Any]:
    """Run units until all jobs have ended, or so many calls."""
    engine, events = bench.built.engine, list[Any]()
    assert engine.training is not None
    while engine.training.active and most:
        ran = engine.train(lambda: True)
        events += engine.training.take_events()
        most -= ran
        if not ran:
            time.sleep(0.002)
    return events + engine.training.take_events()


def result(bench: Bench, name: str) -> list[bytes]:
    """All bytes that the job has ended with."""
    return [(bench.folder / name / "step-00000002" / file).read_bytes() for file in (ADAPTER_WEIGHTS, STATE)]


def test_serving_and_training_change_no_bit_of_each_other(bench: Bench) -> None:
    engine = bench.built.engine
    assert engine.training is not None
    free = engine.scheduler.pool.free
    alone = generate(bench, [], train=False)
    engine.training.start(bench.start("alone"))
    events = finish(bench)
    steps = [event for event in events if isinstance(event, TrainingProgress)]
    assert [event.step for event in steps] == [1, 2]
    assert steps[1].loss < steps[0].loss
    assert isinstance(events[-1], TrainingEnded)
    assert events[-1].status == "succeeded"
    assert engine.scheduler.pool.free == free

    engine.training.start(bench.start("beside"))
    engine.training.start(bench.start("third", TrainingSettings(rank=3, targets=("o", "gate"), max_tokens=16, epochs=1)))
    finish(bench, 1)
    together = [generate(bench, [], train=True) for _ in range(8)]
    assert all(one == alone for one in together)
    gauges = engine.gauges().training
    assert gauges is not None
    assert gauges.beside > 0  # how many depends on what the steps leave of their time
    assert gauges.pages > 0
    finish(bench)
    assert result(bench, "beside") == result(bench, "alone")
    assert engine.scheduler.pool.free == free


def test_a_published_version_is_served_and_requests_keep_theirs(bench: Bench) -> None:
    engine = bench.built.engine
    assert engine.training is not None
    assert engine.adapting is not None
    plain = generate(bench, [], train=False)
    engine.training.start(bench.start("public", publish="mine"))
    events = finish(bench)
    folders = [event.folder for event in events if isinstance(event, TrainingCheckpoint)]
    card = next(card for card in engine.adapting.cards() if card.name == "mine")
    assert [Path(folder).name for folder in folders] == ["step-00000001", "step-00000002"]
    assert card.folder == folders[-1]
    served = generate(bench, [AdapterUse(card.generation)], train=False)
    assert served != plain
    engine.training.start(bench.start("other", TrainingSettings(rank=2, epochs=1, max_tokens=16), publish="mine"))
    finish(bench)
    assert generate(bench, [], train=False) == plain
    newer = next(card for card in engine.adapting.cards() if card.name == "mine")
    assert newer.generation > card.generation


@pytest.mark.parametrize("calls", [3, 100, 300])
def test_pause_and_going_on_end_with_the_same_bits(bench: Bench, calls: int) -> None:
    engine = bench.built.engine
    assert engine.training is not None
    if not (bench.folder / "alone").exists():
        engine.training.start(bench.start("alone"))
        finish(bench)
    name = f"paused {calls}"
    engine.training.start(bench.start(name))
    finish(bench, calls)
    engine.training.stop(StopTraining(name, "pause"))
    events = finish(bench)
    assert isinstance(events[-1], TrainingEnded)
    assert events[-1].status == "paused"
    engine.training.start(bench.start(name))
    assert finish(bench)[-1].status == "succeeded"
    assert result(bench, name) == result(bench, "alone")


def test_what_can_not_be_trained_is_told_by_name(bench: Bench) -> None:
    engine = bench.built.engine
    assert engine.training is not None
    (bench.folder / "rubbish").write_bytes(b"rubbish" * 100)
    (bench.folder / "occupied").write_text("in the way")
    rubbish = StartTraining("rubbish", TARGETS, str(bench.folder / "rubbish"), str(bench.folder / "none"))
    cases = [
        (rubbish, "no data file"),
        (bench.start("large", TrainingSettings(max_tokens=8192)), "lower max_tokens"),
        (bench.start("pairs", TrainingSettings("dpo", max_tokens=32)), "single samples"),
        (bench.start("occupied"), "could not be written"),
    ]
    alone = generate(bench, [], train=False)
    for start, problem in cases:
        engine.training.start(start)
        events = finish(bench)
        assert isinstance(events[-1], TrainingEnded)
        assert (events[-1].status, problem in events[-1].error) == ("failed", True), events[-1]
        assert not engine.training.active
        engine.training.start(start)
        assert generate(bench, [], train=True) == alone, "requests don't notice"
        finish(bench)
    gain = engine.training._parts.backbone().final_norm
    kept, gain[0] = float(gain[0]), np.nan
    engine.training.start(bench.start("not finite"))
    assert generate(bench, [], train=True) == alone, "requests don't notice"
    ended = finish(bench)[-1]
    gain[0] = kept
    assert isinstance(ended, TrainingEnded)
    assert (ended.status, ended.code) == ("failed", "training_failed")
    assert re.search(r"step 1: the loss of row [12] is not finite", ended.error)
    engine.training.start(bench.start("cancelled"))
    finish(bench, 2)
    engine.training.stop(StopTraining("cancelled", "cancel"))
    assert finish(bench)[-1].status == "cancelled"
    engine.check_integrity()


def test_arrays_of_a_job_lie_in_its_pages() -> None:
    pool = np.zeros((8, 4096), np.uint8)
    memory = JobPages([1, 2, 3, 6], pool)
    first, second, large = memory.make((1000,), np.float32), memory.make((1024, 2), np.float32), memory.make((5000,), np.float32)
    first[:], second[:], large[:] = 1.0, 2.0, 3.0
    assert not pool[0].any()
    assert not pool[4:6].any()
    assert not pool[7].any()
    assert np.shares_memory(first, pool)
    assert np.shares_memory(second, pool)
    assert not np.shares_memory(large, pool)
    assert not np.shares_memory(first, second)


def test_a_job_over_the_wire(bench: Bench) -> None:
    async def work() -> list[Any]:
        client, events, ended = EngineClient(), list[Any](), asyncio.Event()

        def hear(event: Any) -> None:
            events.append(event)
            if isinstance(event, TrainingEnded):
                ended.set()

        client.on_training = hear
        await client.start(EngineSettings(threads=1, pool_mib=256, context_length=256))
        try:
            client.start_training(bench.start("wire", publish="wired"))
            stream = client.submit(Submit(client.new_request_id(), PROMPT, SamplingParams(max_tokens=8)))
            assert sum(len(output.tokens) for turn in [one async for one in stream] for output in turn) > 0
            await ended.wait()
            assert [card.name for card in await client.list_adapters()] == ["wired"]
        finally:
            await client.stop()
        return events

    events = asyncio.run(asyncio.wait_for(work(), 120))
    assert [event.step for event in events if isinstance(event, TrainingProgress)] == [1, 2]
    assert events[-1].status == "succeeded"
