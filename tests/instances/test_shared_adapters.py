"""Adapters of a group: registered everywhere, moved with their requests, and known again after a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_group import collect, drive, group

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import AdapterUse, Submit
from headrace.errors import HeadraceError
from headrace.instances.group import InstanceGroup
from headrace.models.adapter import Adapter, LowRank, module_sides, round_bf16
from headrace.models.adapter_file import write_adapter
from headrace.models.catalog import find_model, open_model

pytestmark = pytest.mark.model
PARAMS = SamplingParams(max_tokens=30, seed=2, ignore_eos=True)


def write(folder: Path, seed: int) -> str:
    generator = np.random.default_rng(seed)
    layers = []
    for sides in module_sides(open_model(find_model("smollm2")).config):
        made = {}
        for name in ("q", "o"):
            a, b = (generator.standard_normal(shape, np.float32) for shape in ((2, sides[name][0]), (sides[name][1], 2)))
            made[name] = LowRank(round_bf16(a), round_bf16(b), 0.02)
        layers.append(made)
    write_adapter(folder, Adapter(tuple(layers), "random"))
    return str(folder)


async def answer(made: InstanceGroup, generation: int, *, move: bool = False, kill: bool = False) -> list[Any]:
    uses = [AdapterUse(generation)] if generation else []
    stream = made.submit(Submit(made.new_request_id(), list(range(500, 700)), PARAMS, adapters=uses, speculation=0))
    first = await anext(stream)
    owned = made.owned(stream.request_id)
    assert owned is not None
    assert owned.holder is not None
    if move:
        assert await made.balancing.move(stream.request_id, 1 - owned.holder.number) is None
    if kill:
        assert owned.holder is not None
        owned.holder.kill()
    rest = await collect(stream)
    return [token for output in first for token in output.tokens] + list(rest[0][0])


def test_adapters_are_the_same_everywhere(tmp_path: Path) -> None:
    async def work() -> None:
        async with group() as made:
            one = await made.register_adapter("one", write(tmp_path / "one", 1))
            two = await made.register_adapter("two", write(tmp_path / "two", 2))
            assert (one.generation, two.generation) == (1, 2)
            plain, first = await answer(made, 0), await answer(made, 1)
            assert plain != first
            assert await answer(made, 1, move=True) == first
            assert await answer(made, 1, kill=True) == first
            with pytest.raises(HeadraceError, match="generation 1 has the name"):
                await made.register_adapter("one", str(tmp_path / "two"), expected_generation=0)
            while len(made.slots.serving) < 2:
                await asyncio.sleep(0.05)
            again = await made.register_adapter("one", str(tmp_path / "two"), expected_generation=1)
            assert again.generation == 3
            assert await answer(made, 3, move=True, kill=False) == await answer(made, 2)
            cards = {card.name: card.generation for card in await made.list_adapters()}
            assert cards == {"one": 3, "two": 2}
            with pytest.raises(HeadraceError):
                await made.register_adapter("none", str(tmp_path / "nowhere"))
            await made.remove_adapter("two")
            assert [card.name for card in await made.list_adapters()] == ["one"]
            with pytest.raises(HeadraceError, match="no adapter has the name"):
                await made.pin_adapter("two", pinned=True)

    drive(work())
