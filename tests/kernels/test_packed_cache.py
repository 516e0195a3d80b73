"""The cache of packed weights: the same bits as packing, made again when it can't be used, never in the way."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from chain_tools import MemoryWeights, Piece, Tiny, make_batch, new_pool, tiny_config

from headrace.errors import HeadraceError
from headrace.kernels import packed_cache
from headrace.kernels._native import PackedMatrix, ThreadPool
from headrace.kernels.native_chain import NativeChain
from headrace.kernels.packed_cache import PackedCache, packer_sum
from headrace.kernels.packing import recipe
from headrace.models.catalog import find_model, open_model
from headrace.models.config import ModelConfig
from headrace.models.files import FileIdentity, identify
from headrace.models.weights import RawTensor

CONFIG = tiny_config(Tiny(tied=False))


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """Stands for the file behind the weights: only its identity counts."""
    path = tmp_path / "tiny model.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return PackedCache(tmp_path / "cache" / "packed")


class Counting(MemoryWeights):
    """Weights that count how often they were let go."""

    released = 0

    def release(self) -> None:
        self.released += 1


def chain_of(cache: PackedCache | None, files: tuple[FileIdentity, ...], config: ModelConfig = CONFIG) -> NativeChain:
    weights = Counting(config, 7)
    pack = None if cache is None else lambda *asked: cache.matrices(asked[0], asked[1], files, asked[2])
    chain = NativeChain(config, weights, 1, pack)
    assert weights.released == 1
    return chain


def bits(chain: NativeChain) -> bytes:
    pool = new_pool(chain, 4)
    chain.forward(make_batch([Piece(range(20), 0, [2, 0])]), pool)
    return chain.logits(0, 20).tobytes() + pool.tobytes()


def kept(cache: PackedCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def test_mapped_weights_compute_the_same_bits(cache: PackedCache, model_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = (identify(model_file),)
    expected = bits(chain_of(None, ()))
    assert bits(chain_of(cache, files)) == expected
    [path] = kept(cache)
    assert path.name.startswith("tiny model-")
    made = path.stat().st_ino
    assert bits(chain_of(cache, files)) == expected
    assert [path.stat().st_ino for path in kept(cache)] == [made]
    assert not caplog.records
    assert cache.state().files == 1
    assert cache.state().bytes == path.stat().st_size


def test_a_changed_model_file_is_another_model(cache: PackedCache, model_file: Path) -> None:
    chain_of(cache, (identify(model_file),))
    model_file.write_bytes(b"other weights")
    chain_of(cache, (identify(model_file),))
    assert len(kept(cache)) == 2


def test_a_model_file_that_changes_while_it_is_packed_is_not_kept(
    cache: PackedCache, model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = (identify(model_file),)
    model_file.write_bytes(b"other weights")
    assert bits(chain_of(cache, files)) == bits(chain_of(None, ()))
    assert not kept(cache)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign", "empty"])
def test_an_unusable_file_is_made_again_with_one_warning(
    damage: str, cache: PackedCache, model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = (identify(model_file),)
    expected = bits(chain_of(cache, files))
    [path] = kept(cache)
    whole = path.read_bytes()
    middle = 4096 + 64
    bad = {"flipped": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :], "cut": whole[:-9], "foreign": b"x" * 999}
    path.write_bytes(bad.get(damage, b""))
    assert bits(chain_of(cache, files)) == expected
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "made again" in caplog.text
    assert path.read_bytes() == whole
    caplog.clear()
    assert bits(chain_of(cache, files)) == expected
    assert not caplog.records


def test_a_folder_that_cant_be_written_costs_a_warning(tmp_path: Path, model_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert bits(chain_of(PackedCache(tmp_path / "file" / "packed"), (identify(model_file),))) == bits(chain_of(None, ()))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "packed at every start" in caplog.text


def test_a_full_disk_costs_a_warning(
    cache: PackedCache, model_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_cache, "SPARE_BYTES", 1 << 60)
    assert bits(chain_of(cache, (identify(model_file),))) == bits(chain_of(None, ()))
    assert not kept(cache)
    assert "nearly full" in caplog.text


def test_weights_of_no_file_are_not_kept(cache: PackedCache) -> None:
    assert bits(chain_of(cache, ())) == bits(chain_of(None, ()))
    assert not cache.folder.exists()


def test_bad_weights_are_refused_and_nothing_is_kept(cache: PackedCache, model_file: Path) -> None:
    weights = MemoryWeights(CONFIG, 7)
    weights._tensors["layer.1.mlp.down"][3, 5] = np.inf
    with pytest.raises(HeadraceError, match="infinite") as refused:
        cache.matrices(CONFIG, weights, (identify(model_file),), ThreadPool(1))
    assert refused.value.code == "model_file"
    assert not kept(cache)


def test_files_used_longest_ago_go_first(cache: PackedCache, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(number: int) -> Path:
        model_file.write_bytes(b"x" * number)
        before = set(kept(cache)) if cache.folder.exists() else set()
        chain_of(cache, (identify(model_file),))
        [path] = set(kept(cache)) - before
        return path

    first, second = make(1), make(2)
    os.utime(first, (2e9, 2e9))
    os.utime(second, (1e9, 1e9))
    abandoned, fresh = cache.folder / ".killed.part", cache.folder / ".writing.part"
    for part in (abandoned, fresh):
        part.write_bytes(b"half")
    os.utime(abandoned, (time.time() - 7200,) * 2)
    monkeypatch.setattr(packed_cache, "MOST_BYTES", first.stat().st_size + 3 * MemoryWeights(CONFIG, 7).size_bytes)
    third = make(3)
    assert set(kept(cache)) == {first, third, fresh}


def test_use_counts_as_use(cache: PackedCache, model_file: Path) -> None:
    files = (identify(model_file),)
    chain_of(cache, files)
    [path] = kept(cache)
    os.utime(path, (1e9, 1e9))
    chain_of(cache, files)
    assert path.stat().st_mtime > 1e9


def test_recipes_tell_layouts_apart() -> None:
    data = np.zeros(4 * 32 * 4, np.uint8)
    plain = RawTensor("F32", (4, 32), data)
    turned = RawTensor("F32", (4, 32), data, np.array([1, 0, 3, 2], np.int32))
    recipes = [
        recipe([plain]), recipe([plain, plain]), recipe([plain, plain], interleave=True), recipe([turned]),
        recipe([RawTensor("F32", (8, 16), data)]), recipe([RawTensor("F16", (8, 32), data)]),
    ]  # fmt: skip
    assert len(set(recipes)) == len(recipes)


def test_the_packers_sum_depends_on_nothing_but_the_packer(isa: str) -> None:
    assert packer_sum(ThreadPool(1)) == packer_sum(ThreadPool(2))


def test_borrowed_panels_are_checked_and_kept_alive() -> None:
    data = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    pool = ThreadPool(1)
    packed = PackedMatrix.pack([(data.reshape(-1).view(np.uint8), "F32", 20, 64, None)], pool)
    room = np.empty(packed.bytes + 128, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + packed.bytes] = packed.panels
    borrowed = PackedMatrix.borrow([("F32", 20, 64)], False, room[start : start + packed.bytes])
    with pytest.raises(ValueError, match="aligned"):
        PackedMatrix.borrow([("F32", 20, 64)], False, room[start + 4 : start + 4 + packed.bytes])
    for shapes in ([("F32", 40, 64)], [("F16", 20, 64)], [("F32", 20, 64)] * 2):
        with pytest.raises(ValueError, match="bytes"):
            PackedMatrix.borrow(shapes, False, room[start : start + packed.bytes])
    with pytest.raises(ValueError, match="kind"):
        PackedMatrix.borrow([("Q9", 20, 64)], False, room[start : start + packed.bytes])
    expected = packed.dequantize(np.arange(20, dtype=np.int32))
    panels = packed.panels
    del room, packed
    assert panels.any()
    np.testing.assert_array_equal(borrowed.dequantize(np.arange(20, dtype=np.int32)), expected)
    np.testing.assert_array_equal(expected, data)


def resident(path: str) -> int:
    """Bytes of a file that this process has mapped and in memory."""
    total, name = 0, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            name = line.split(maxsplit=5)[-1]
        elif line.startswith("Rss:") and name == path:
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.model
def test_the_bundled_model_is_mapped_and_its_source_let_go(cache: PackedCache) -> None:
    model = open_model(find_model("smollm2"))
    source = model.files[0].path
    before = resident(source)  # by other tests of this process, which may have the file open too
    for _ in range(2):
        chain = NativeChain(
            model.config, model.weights, 2, lambda config, weights, pool: cache.matrices(config, weights, model.files, pool)
        )
    [path] = kept(cache)
    assert resident(str(path)) >= 0.99 * path.stat().st_size
    assert resident(source) - before < 3 << 20
    del chain
