"""Fine-tuning in a group: a job has one home, outlives it with the same bits, and what it publishes is everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import write_tiny_model

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.training_wire import StartTraining, TrainingCheckpoint, TrainingEnded, TrainingProgress
from headrace.engine.wire import AdapterUse, Submit
from headrace.instances.group import InstanceGroup
from headrace.instances.options import GroupOptions
from headrace.models.adapter_file import ADAPTER_WEIGHTS
from headrace.training.checkpoint import STATE
from headrace.training.dataset_file import Sample, write_dataset
from headrace.training.settings import TrainingSettings

SETTINGS = TrainingSettings(rank=4, batch=1, epochs=40, max_tokens=32, checkpoint_every=20, learning_rate=1e-2)
LONG = TrainingSettings(rank=4, batch=1, epochs=1000, max_tokens=32, checkpoint_every=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@dataclass
class Jobs:
    """Events of a group's jobs, as they come."""

    made: InstanceGroup
    folder: Path
    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.made.on_training = self.events.append
        draws = np.random.default_rng(1)
        rows = [Sample(draws.integers(3, 40, 14).astype(np.int32), np.ones(14, np.float32)) for _ in range(2)]
        assert self.made.ready is not None
        write_dataset(self.folder / "data", rows, vocab=self.made.ready.vocab)

    def start(self, name: str, settings: TrainingSettings = SETTINGS, publish: str | None = None) -> None:
        self.made.start_training(StartTraining(name, settings, str(self.folder / "data"), str(self.folder / name), publish=publish))

    def home(self, name: str) -> int:
        number = self.made.training.homes()[name]
        assert number is not None
        return number

    async def until(self, name: str, kind: type) -> Any:
        """The first event of a kind from now on."""
        seen = len(self.events)
        while True:
            for event in self.events[seen:]:
                assert event.job != name or isinstance(event, kind) or not isinstance(event, TrainingEnded), event
                if event.job == name and isinstance(event, kind):
                    return event
            await asyncio.sleep(0.005)

    def result(self, name: str) -> list[bytes]:
        last = max((self.folder / name).glob("step-*"))
        return [last.name.encode(), *((last / file).read_bytes() for file in (ADAPTER_WEIGHTS, STATE))]


@asynccontextmanager
async def jobs(model: Path, folder: Path) -> AsyncIterator[Jobs]:
    made = InstanceGroup(GroupOptions(2, round_seconds=0.0, restart_seconds=0.05))
    await made.start(EngineSettings(model=str(model), threads=2, pool_mib=64, preempt="recompute"))
    try:
        yield Jobs(made, folder)
    finally:
        await made.stop()


def drive(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 120))


def test_jobs_live_in_one_instance_and_outlive_it(model: Path, tmp_path: Path) -> None:
    async def work() -> None:
        async with jobs(model, tmp_path) as own:
            own.start("alone")
            ended = await own.until("alone", TrainingEnded)
            assert (ended.status, ended.step) == ("succeeded", 80), ended
            await killed_home(own)
            await emptied_home(own)
            await two_homes(own)
            await nowhere(own)

    drive(work())


async def killed_home(own: Jobs) -> None:
    """Its process ends behind a checkpoint: the other instance ends the job with the bits of an undisturbed one."""
    own.start("killed", publish="wheels")
    await own.until("killed", TrainingCheckpoint)
    first = own.home("killed")
    own.made.slots[first].member.kill()
    ended = await own.until("killed", TrainingEnded)
    assert ended.status == "succeeded", ended
    assert own.made.slots[first].crashes == 1, "it was over before it was killed"
    assert own.result("killed") == own.result("alone")
    [card] = await own.made.list_adapters()  # told before the job's end was
    assert (card.name, card.folder) == ("wheels", ended.folder)
    while own.made.slots[first].state != "serving":
        await asyncio.sleep(0.01)
    for slot in own.made.slots.all:  # also the one that started again
        assert card.generation in slot.member.generations
    request = Submit(own.made.new_request_id(), [3, 4], SamplingParams(max_tokens=2), adapters=[AdapterUse(card.generation)])
    assert [output async for outputs in own.made.submit(request) for output in outputs]


async def emptied_home(own: Jobs) -> None:
    """An instance that is emptied gives its job away."""
    own.start("moved")
    await own.until("moved", TrainingProgress)
    first = own.home("moved")
    moving = own.made.draining.drain(first)
    ended = await own.until("moved", TrainingEnded)
    assert ended.status == "succeeded", ended
    assert await moving
    assert own.result("moved") == own.result("alone")
    own.made.undrain(first)


async def two_homes(own: Jobs) -> None:
    """A second job goes where no other is; each stops by itself."""
    own.start("one", LONG)
    own.start("two", LONG)
    assert {own.home("one"), own.home("two")} == {0, 1}
    own.start("one", LONG)
    assert own.events[-1].error == "a job of this name runs already"
    own.made.stop_training("one", "cancel")
    own.made.stop_training("unknown", "cancel")
    assert (await own.until("one", TrainingEnded)).status == "cancelled"
    await own.until("two", TrainingProgress)
    own.made.stop_training("two", "pause")
    paused = await own.until("two", TrainingEnded)
    assert paused.status == "paused"
    own.start("two", LONG)
    assert (await own.until("two", TrainingProgress)).step == paused.step + 1


async def nowhere(own: Jobs) -> None:
    """All instances end: jobs wait, can be stopped, and go on with whichever starts again."""
    own.start("waits", LONG)
    await own.until("waits", TrainingCheckpoint)
    for slot in own.made.slots.all:
        slot.member.kill()
    while any(number is not None for number in own.made.training.homes().values()):
        await asyncio.sleep(0.001)
    own.made.stop_training("two", "cancel")
    assert own.events[-1].status == "cancelled"
    assert (await own.until("waits", TrainingProgress)).step > 1
    own.made.stop_training("waits", "cancel")
    assert (await own.until("waits", TrainingEnded)).status == "cancelled"
    assert own.made.training.homes() == {}
