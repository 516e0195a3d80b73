"""Pages kept on a disk give what computing gives: after a restart, a kill, and on a disk that is slow, full or broken."""

from __future__ import annotations

import errno
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_chain import PAGE_TOKENS, VOCAB, Clock, Results, ToyChain, collect, toy_engine

from headrace.engine.build import build_engine
from headrace.engine.keeping import DiskKeeping
from headrace.engine.loop import Engine, EngineParts
from headrace.engine.request import Limits
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import KeptGauges, Submit
from headrace.kernels.sampler import Sampler
from headrace.memory.arena import Arena
from headrace.memory.disk_tier import lies_in_memory
from headrace.memory.kept_file import KeptFile
from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.keeping import GROWN_PAGES, Keeping, KeepOptions
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings

PAGES = 64
SLOTS = 120
IDENTITY = "toy-1"


@dataclass
class Faults:
    """Each call sleeps ``delay`` seconds; each ``every``-th write or read fails with ``code``."""

    delay: float = 0.0
    every_write: int = 0
    every_read: int = 0
    code: int = errno.EIO


class FaultyFile(KeptFile):
    """A kept file with faults."""

    faults = Faults()
    calls = 0

    def write(self, page: int, slot: int, count: int) -> None:
        self._fault(self.faults.every_write)
        super().write(page, slot, count)

    def read(self, page: int, slot: int, count: int) -> None:
        self._fault(self.faults.every_read)
        super().read(page, slot, count)

    def _fault(self, every: int) -> None:
        time.sleep(self.faults.delay)
        self.calls += 1
        if every and self.calls % every == 0:
            raise OSError(self.faults.code, "injected")


@contextmanager
def keeping_engine(folder: Path, faults: Faults | None = None, *, pages: int = PAGES, slots: int = SLOTS) -> Iterator[Engine]:
    chain = ToyChain()
    with Arena(pages, chain.page_layout.page_bytes) as arena:
        pool = PagePool(pages, PAGE_TOKENS)
        scheduler = Scheduler(
            SchedulingSettings(step_tokens=16), pool, Cost(), POLICIES.get("fcfs"), keep=KeepOptions(slots, 4096, run_pages=3)
        )
        file = FaultyFile(arena, (folder, IDENTITY), slots, PAGE_TOKENS)
        file.faults = faults or Faults()
        limits = Limits(VOCAB, chain.config.context_length, chain.config.eos_ids)
        engine = Engine(
            EngineParts(
                chain, arena.bytes, scheduler, Sampler(VOCAB), limits, clock=Clock(), keeping=DiskKeeping(scheduler, file)
            )
        )  # fmt: skip
        try:
            yield engine
        finally:
            engine.close()


@pytest.fixture(autouse=True)
def _always_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy computes its pages faster than any disk reads them."""
    monkeypatch.setattr(Keeping, "is_quicker", lambda *_: True)


def prompt_of(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


def submit_of(seed: int, length: int, tenant: str = "", n: int = 1) -> Submit:
    params = SamplingParams(max_tokens=6, temperature=(0.0, 0.8)[seed % 2], seed=seed, ignore_eos=True, top_logprobs=1, n=n)
    return Submit(seed, prompt_of(seed, length), params, tenant=tenant)


def run(engine: Engine, submits: list[Submit]) -> Results:
    results: Results = {}
    coming, steps = list(submits), 0
    while coming or engine.live:
        if coming:
            engine.submit(coming.pop(0))
        outputs = engine.step()
        engine.check_integrity()
        if outputs is not None:
            collect(results, outputs.outputs)
        steps += 1
        assert steps < 5_000, "the engine does not come to an end"
    return results


def settle(engine: Engine) -> KeptGauges:
    assert engine._keeping is not None
    engine._keeping.settle(10.0)
    engine.check_integrity()
    gauges = engine.gauges().kept
    assert gauges is not None
    return gauges


def alone(submits: list[Submit]) -> Results:
    results: Results = {}
    for submit in submits:
        results |= run(toy_engine(), [submit])
    return results


MIXED = [submit_of(seed, 9 + 7 * seed % 60, n=1 + 2 * (seed % 3 == 2)) for seed in range(8)]


def test_a_restart_finds_what_was_said_before(tmp_path: Path) -> None:
    with keeping_engine(tmp_path, pages=200) as engine:
        first = run(engine, MIXED)
        written = settle(engine).written_pages
    assert first == alone(MIXED)
    assert written > 20
    with keeping_engine(tmp_path, pages=200) as engine:
        assert run(engine, MIXED) == first
        gauges = engine.gauges()
        assert gauges.prefix_found_tokens == sum((len(one.prompt) - 1) // PAGE_TOKENS * PAGE_TOKENS for one in MIXED)
        assert gauges.kept is not None
        assert gauges.kept.read_pages > 20
        assert settle(engine).written_pages == 0, "what is kept is not written again"


def test_cached_tokens_count_what_the_disk_had(tmp_path: Path) -> None:
    ask = submit_of(2, 30)
    for expected in (0, 28):
        with keeping_engine(tmp_path) as engine:
            engine.submit(ask)
            told = []
            while engine.live:
                outputs = engine.step()
                told += [output.cached_tokens for output in outputs.outputs] if outputs is not None else []
            assert told[0] == expected


def test_a_conversation_goes_on_after_every_restart(tmp_path: Path) -> None:
    talk = prompt_of(1, 11)
    for turn in range(6):
        ask = Submit(1, list(talk), SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True))
        with keeping_engine(tmp_path) as engine:
            answer = run(engine, [ask])[1, 0].tokens
            assert engine.gauges().prefix_found_tokens == (0 if turn == 0 else (len(talk) - 7) // PAGE_TOKENS * PAGE_TOKENS)
        assert answer == run(toy_engine(), [ask])[1, 0].tokens
        talk = [*talk, *answer, *prompt_of(turn, 6)]


def test_what_the_pool_forgets_the_disk_still_has(tmp_path: Path) -> None:
    asks = [submit_of(seed, 40) for seed in range(12)]  # more than the pool holds
    with keeping_engine(tmp_path, slots=200) as engine:
        first: Results = {}
        for ask in asks:
            first |= run(engine, [ask])
            settle(engine)
        again: Results = {}
        for ask in asks:
            again |= run(engine, [ask])
        assert first == again == alone(asks)
        assert engine.gauges().prefix_found_tokens == 12 * 36
        assert engine.gauges().prefix_evictions > 30


def test_another_tenant_finds_nothing_on_the_disk(tmp_path: Path) -> None:
    with keeping_engine(tmp_path) as engine:
        run(engine, [submit_of(4, 30, "mine")])
    with keeping_engine(tmp_path) as engine:
        run(engine, [submit_of(4, 30, "other")])
        run(engine, [submit_of(4, 30)])
        assert engine.gauges().prefix_found_tokens == 0
        run(engine, [submit_of(4, 30, "mine")])
        assert engine.gauges().prefix_found_tokens == 28


def test_the_disk_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    with keeping_engine(tmp_path, slots=20) as engine:
        for seed in range(5):
            run(engine, [submit_of(seed, 27)])
            assert settle(engine).stored_pages <= 20
    with keeping_engine(tmp_path, slots=20) as engine:
        run(engine, [submit_of(0, 27)])
        assert engine.gauges().prefix_found_tokens == 0
        run(engine, [submit_of(4, 27)])
        assert engine.gauges().prefix_found_tokens == 24


@pytest.mark.parametrize(
    "faults",
    [Faults(every_read=1), Faults(every_read=3), Faults(every_write=2), Faults(every_write=1, code=errno.ENOSPC), Faults(0.01)],
    ids=["no read", "some reads", "some writes", "full", "slow"],
)
def test_a_bad_disk_changes_no_token(tmp_path: Path, faults: Faults, caplog: pytest.LogCaptureFixture) -> None:
    expected = alone(MIXED)
    with keeping_engine(tmp_path) as engine:
        run(engine, MIXED[::2])
        settle(engine)
    with caplog.at_level(logging.WARNING), keeping_engine(tmp_path, faults) as engine:
        for _ in range(3):
            assert run(engine, MIXED) == expected
            failures = settle(engine).failures
        assert (failures > 0) == bool(faults.every_read or faults.every_write)
        assert len([one for one in caplog.records if "told once" in one.message]) <= 2


def test_a_full_disk_pauses_the_keeping_and_serves_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file may not grow: the system itself refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with caplog.at_level(logging.WARNING), keeping_engine(tmp_path) as engine:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
        try:
            assert run(engine, MIXED) == alone(MIXED)
            assert settle(engine).stored_pages == 0
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "left alone for a while" in caplog.text


def test_damaged_pages_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with keeping_engine(tmp_path) as engine:
        first = run(engine, MIXED)
    path = tmp_path / f"{IDENTITY}.pages"
    data = bytearray(path.read_bytes())
    for place in range(0, 60 * 4096, 3 * 4096):
        data[place + 5] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING), keeping_engine(tmp_path) as engine:
        assert run(engine, MIXED) == first
        assert settle(engine).failures > 0
    assert "damaged" in caplog.text


def test_a_cancelled_reader_leaves_nothing_behind(tmp_path: Path) -> None:
    with keeping_engine(tmp_path) as engine:
        run(engine, [submit_of(1, 60)])
    with keeping_engine(tmp_path, Faults(delay=0.05)) as engine:
        engine.submit(submit_of(1, 60, n=1))
        engine.step()
        assert engine._keeping is not None
        assert engine._keeping.carrying
        engine.cancel(1)
        engine.check_integrity()
        engine.submit(submit_of(3, 20))
        while engine.live:
            engine.step()
            engine.check_integrity()
        settle(engine)
        assert engine.scheduler.pool.held == 0


def test_a_killed_server_loses_little_of_a_request_that_was_still_running(tmp_path: Path) -> None:
    """What the files hold at some moment is what a kill at that moment leaves."""
    ask = Submit(1, prompt_of(1, 20), SamplingParams(max_tokens=150, temperature=0.0, ignore_eos=True))
    before, after = tmp_path / "before", tmp_path / "after"
    with keeping_engine(before) as engine:
        engine.submit(ask)
        told: list[int] = []
        while len(told) < 140:
            outputs = engine.step()
            assert outputs is not None
            told += [token for one in outputs.outputs for token in one.tokens]
        assert engine._keeping is not None
        engine._keeping.settle(10.0)
        engine.check_integrity()
        shutil.copytree(before, after)
        assert engine.live == 1
    with keeping_engine(after) as engine:
        later = Submit(2, [*ask.prompt, *told], SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True))
        answer = run(engine, [later])[2, 0].tokens
        assert engine.gauges().prefix_found_tokens >= (160 // PAGE_TOKENS - GROWN_PAGES) * PAGE_TOKENS > 80
    assert answer == run(toy_engine(), [later])[2, 0].tokens


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_keeping as t
from headrace.scheduling.keeping import Keeping
Keeping.is_quicker = lambda *_: True
with t.keeping_engine(Path({folder!r}), t.Faults(delay=0.002)) as engine:
    print("up", flush=True)
    for seed in range(10_000):
        t.run(engine, [t.submit_of(seed % 40, 45)])
"""


def test_an_engine_killed_while_it_writes_leaves_usable_pages(tmp_path: Path) -> None:
    program = _CHILD.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        table = tmp_path / f"{IDENTITY}.table"
        ends = time.monotonic() + 20
        while table.stat().st_size < 2000 and time.monotonic() < ends:
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    with keeping_engine(tmp_path) as engine:
        asks = [submit_of(seed, 45) for seed in range(40)]
        for ask in asks:
            assert run(engine, [ask]) == alone([ask])
        assert engine.gauges().prefix_found_tokens > 0


def test_two_servers_never_share_the_files(tmp_path: Path) -> None:
    with keeping_engine(tmp_path) as engine:
        with pytest.raises(BlockingIOError), keeping_engine(tmp_path):
            raise AssertionError("unreachable")
        assert run(engine, MIXED) == alone(MIXED)
    with keeping_engine(tmp_path) as engine:
        run(engine, MIXED)
        assert engine.gauges().prefix_found_tokens > 0


@pytest.mark.model
def test_a_server_of_a_real_model_keeps_pages_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if lies_in_memory(tmp_path):
        pytest.skip("the folder for temporary files lies in RAM")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("headrace.engine.build._calibration", lambda *_: None)
    ask = Submit(1, prompt_of(1, 70), SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, top_logprobs=1))
    results = []
    for gib, found in ((None, 0), (1, 0), (1, 64)):
        built = build_engine(EngineSettings(context_length=256, prefix_disk_gib=gib, threads=1))
        results.append(run(built.engine, [ask]))
        assert built.engine.gauges().prefix_found_tokens == found
        built.close()
    assert results[0] == results[1] == results[2]
    kept = list((tmp_path / "headrace" / "prefix").iterdir())
    assert len(kept) == 2
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
