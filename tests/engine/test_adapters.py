"""Adapters from folders into pages and into steps, with what may go wrong between."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headrace.engine.adapters import Adapters
from headrace.errors import HeadraceError
from headrace.kernels.adapter_pages import read_back
from headrace.memory.adapter_store import AdapterState, AdapterStore
from headrace.memory.page_pool import PagePool
from headrace.models.adapter import Adapter, LowRank, module_sides, round_bf16
from headrace.models.adapter_config import ADAPTER_CONFIG
from headrace.models.adapter_file import ADAPTER_WEIGHTS, write_adapter
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig

CONFIG = ModelConfig("llama", 64, 100, 64, 1e-5, (AttentionSpec(2, 1, 32, 1.0, 1e4), MlpSpec(96, "silu")) * 2)
PAGE_BYTES = 2048


def adapter(seed: int, rank: int = 4) -> Adapter:
    generator = np.random.default_rng(seed)
    layers = []
    for sides in module_sides(CONFIG):
        made = {}
        for name in ("q", "down"):
            a, b = generator.standard_normal((rank, sides[name][0])), generator.standard_normal((sides[name][1], rank))
            made[name] = LowRank(round_bf16(a), round_bf16(b), 0.5)
        layers.append(made)
    return Adapter(tuple(layers), "base")


def shelf(pages: int = 12) -> tuple[Adapters, PagePool, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    pool, data = PagePool(pages, 16), np.zeros((pages, PAGE_BYTES), np.uint8)
    return Adapters(CONFIG, AdapterStore(pool), data), pool, data


def test_registered_loaded_evicted_loaded_again(tmp_path: Path) -> None:
    adapters, pool, data = shelf()
    made = [adapter(seed) for seed in range(3)]
    for index, one in enumerate(made):
        write_adapter(tmp_path / str(index), one)
    records = [adapters.register(str(index), tmp_path / str(index)) for index in range(3)]
    assert [record.size for record in records] == [3, 3, 3]
    assert pool.held == 0
    for record in records:
        assert adapters.load(record.generation)
    step = adapters.step([[(3, 1.0)], [], [(1, 2.0), (3, -1.0)]])
    assert step is not None
    assert (step.starts.tolist(), step.ids.tolist(), step.scales.tolist()) == ([0, 1, 1, 3], [0, 1, 0], [1.0, 2.0, -1.0])
    assert [placed.pages.tolist() for placed in step.adapters] == [records[2].pages, records[0].pages]
    for _ in range(3):
        assert adapters.store.make_room(12)
        data[:] = 0xFF
        for record, one in zip(records, made, strict=True):
            assert adapters.load(record.generation)
            placed = adapters.step([[(record.generation, 1.0)]])
            assert placed is not None
            again = read_back(placed.adapters[0], CONFIG, data)
            assert all(
                part.b.tobytes() == again.layers[layer][name].b.tobytes()
                for layer, parts in enumerate(one.layers)
                for name, part in parts.items()
            )
    assert adapters.step([[], []]) is None


def test_changed_settings_under_unchanged_weights_are_noticed(tmp_path: Path) -> None:
    adapters, pool, _ = shelf()
    write_adapter(tmp_path, adapter(1))
    record = adapters.register("a", tmp_path)
    settings = tmp_path / ADAPTER_CONFIG
    fields = json.loads(settings.read_text())
    settings.write_text(json.dumps(fields | {"lora_alpha": fields["lora_alpha"] * 2}))
    with pytest.raises(HeadraceError, match="changed since it was registered"):
        adapters.load(record.generation)
    assert pool.held == 0
    again = adapters.register("a", tmp_path)
    assert adapters.load(again.generation)


def test_a_damaged_or_changed_file_leaks_nothing(tmp_path: Path) -> None:
    adapters, pool, _ = shelf()
    write_adapter(tmp_path, adapter(1))
    record = adapters.register("a", tmp_path)
    file = tmp_path / ADAPTER_WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    with pytest.raises(HeadraceError, match="offsets"):
        adapters.load(record.generation)
    write_adapter(tmp_path, adapter(2))
    with pytest.raises(HeadraceError, match="changed since it was registered"):
        adapters.load(record.generation)
    file.unlink()
    with pytest.raises(HeadraceError, match="can't be opened"):
        adapters.load(record.generation)
    assert (record.state, pool.held) == (AdapterState.REGISTERED, 0)
    adapters.store.check_integrity()


def test_adapters_larger_than_the_pool_are_refused_at_once(tmp_path: Path) -> None:
    adapters, _, _ = shelf(pages=4)
    write_adapter(tmp_path, adapter(1, rank=30))
    with pytest.raises(HeadraceError, match=r"takes \d+ pages, the pool has 4"):
        adapters.register("big", tmp_path)
    assert len(adapters.store) == 0


def test_no_room_is_no_error(tmp_path: Path) -> None:
    adapters, pool, _ = shelf(pages=4)
    for index in range(2):
        write_adapter(tmp_path / str(index), adapter(index))
        adapters.register(str(index), tmp_path / str(index))
    assert adapters.load(1)
    adapters.store.pin(1)
    assert not adapters.load(2)
    adapters.store.unpin(1)
    assert adapters.load(2)
    assert pool.held == 3


def test_registering_does_not_read_the_numbers(tmp_path: Path) -> None:
    adapters, _, _ = shelf()
    one = adapter(1)
    one.layers[0]["q"].a[0, 0] = 0x7FC0
    write_adapter(tmp_path, one)
    record = adapters.register("a", tmp_path)
    with pytest.raises(HeadraceError, match="infinite or not a number"):
        adapters.load(record.generation)


def test_names_that_are_taken_again_leave_nothing_behind(tmp_path: Path) -> None:
    adapters, _, _ = shelf()
    write_adapter(tmp_path, adapter(1))
    for index in range(300):
        adapters.register(f"a{index % 10}", tmp_path)
    assert len(adapters.store) == 10
    assert len(adapters._facts) <= 40
