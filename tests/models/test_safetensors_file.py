"""The safetensors reader: agrees with the format's own library, believes no header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import TIMES
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors_bytes import header, safetensors, tiny_tensors

from headrace.errors import HeadraceError
from headrace.models.safetensors_file import INDEX_NAME, StoredTensor, open_folder, open_safetensors, parse_safetensors


def parse(data: bytes) -> dict[str, StoredTensor]:
    return parse_safetensors(np.frombuffer(data, np.uint8))


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_agrees_with_the_format_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal(7).astype(np.float16),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "np"})
    read = open_safetensors(tmp_path / "x.safetensors")
    assert {name: (t.kind, t.shape) for name, t in read.items()} == {"a": ("F32", (3, 5)), "b": ("F16", (7,))}
    for name, values in tensors.items():
        assert read[name].data.tobytes() == values.tobytes()
        assert not read[name].data.flags.writeable


HOSTILE: dict[str, tuple[bytes, str]] = {
    "too short": (b"1234567", "too few"),
    "header beyond file": ((1000).to_bytes(8, "little") + b"{}", "over the limit"),
    "header over limit": ((1 << 62).to_bytes(8, "little") + b"{}", "over the limit"),
    "no json": (header(b"{nope"), "not valid JSON"),
    "no utf-8": (header(b'{"\xff": 1}'), "not valid JSON"),
    "deep json": (header(b"[" * 100_000), "not valid JSON"),
    "long number": (header(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "nan": (header(b'{"a":NaN}'), "no JSON number"),
    "list": (header([]), "not a JSON object"),
    "name twice": (header(b'{"a":1,"a":2}'), "declared twice"),
    "entry no object": (header({"a": 3}), "must have dtype"),
    "entry with more": (header({"a": entry() | {"x": 1}}) + bytes(8), "must have dtype"),
    "unknown kind": (header({"a": entry("I64", [1])}) + bytes(8), "of kind 'I64'; known are F32, F16, BF16, I16, I8, U8"),
    "fp8 kind": (header({"a": entry("F8_E4M3", [8])}) + bytes(8), "F8_E4M3"),
    "kind no string": (header({"a": entry(["F32"])}) + bytes(8), "of kind"),
    "shape negative": (header({"a": entry(shape=[-2])}) + bytes(8), "no lists of sizes"),
    "shape of booleans": (header({"a": entry(shape=[True, 2])}) + bytes(8), "no lists of sizes"),
    "shape of floats": (header({"a": entry(shape=[2.0])}) + bytes(8), "no lists of sizes"),
    "shape no list": (header({"a": entry(shape="2")}) + bytes(8), "no lists of sizes"),
    "five dimensions": (header({"a": entry(shape=[1, 1, 1, 1, 2])}) + bytes(8), "no lists of sizes"),
    "three offsets": (header({"a": entry(offsets=[0, 4, 8])}) + bytes(8), "no lists of sizes"),
    "product wraps": (header({"a": entry(shape=[2**32, 2**32])}) + bytes(8), "has offsets 0 to 8"),
    "beyond body": (header({"a": entry(offsets=[8, 16])}) + bytes(8), "in a body of 8"),
    "backwards": (header({"a": entry(offsets=[8, 0])}) + bytes(8), "has offsets 8 to 0"),
    "size differs": (header({"a": entry(shape=[3])}) + bytes(8), "of 12 bytes"),
    "empty": (header({"a": entry(shape=[0], offsets=[0, 0])}), "of 0 bytes"),
    "overlap": (header({"a": entry(), "b": entry(offsets=[4, 12])}) + bytes(12), "overlaps"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_for_the_right_reason(name: str) -> None:
    data, message = HOSTILE[name]
    with pytest.raises(HeadraceError, match=message) as caught:
        parse(data)
    assert caught.value.code == "model_file"


@given(st.data())
@settings(max_examples=300 * TIMES, deadline=None)
def test_fuzz_damaged_headers_are_read_or_refused(data: st.DataObject) -> None:
    good = safetensors({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)})
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 50))
        damaged[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        tensors = parse(bytes(damaged))
    except HeadraceError as error:
        tensors, code = {}, error.code
    else:
        code = "model_file"
    assert code == "model_file"
    assert all(
        tensor.data.size == {"F32": 4, "I8": 1, "U8": 1}.get(tensor.kind, 2) * np.prod(tensor.shape) for tensor in tensors.values()
    )


def write_shards(folder: Path, weight_map: dict[str, object] | None = None) -> None:
    tensors = tiny_tensors()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:4], "model-2.safetensors": names[4:]}
    for shard, own in parts.items():
        (folder / shard).write_bytes(safetensors({name: tensors[name] for name in own}))
    owners = {name: shard for shard, own in parts.items() for name in own}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": owners | (weight_map or {})}))


def test_shards_are_joined(tmp_path: Path) -> None:
    write_shards(tmp_path)
    read = open_folder(tmp_path)
    assert {name: tensor.data.tobytes() for name, tensor in read.items()} == {n: v.tobytes() for n, v in tiny_tensors().items()}


@pytest.mark.parametrize(
    "shard",
    ["../out.safetensors", "/etc/passwd", "a/b.safetensors", ".hidden.safetensors", "x.bin", "", 3, None, "x\0.safetensors"],
)
def test_shards_outside_the_folder_are_refused(shard: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "out.safetensors").write_bytes(safetensors({"extra": np.ones(2, np.float32)}))
    write_shards(folder, {"extra": shard})
    with pytest.raises(HeadraceError, match="no plain file name"):
        open_folder(folder)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    write_shards(tmp_path, {"ghost": "model-1.safetensors"})
    with pytest.raises(HeadraceError, match="'ghost' stands in"):
        open_folder(tmp_path)
    write_shards(tmp_path, {"model.norm.weight": "model-1.safetensors"})
    with pytest.raises(HeadraceError, match=r"'model\.norm\.weight' of"):
        open_folder(tmp_path)
