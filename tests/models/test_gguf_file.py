"""The GGUF reader: agrees with the format's own library on good files, refuses every lie in bounded time and memory."""

from __future__ import annotations

import json
import os
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from fuzzing import TIMES
from gguf_bytes import BOOL, STRING, U32, GgufBytes, array, scalar, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.models.files import MAX_MESSAGE
from headrace.models.gguf_file import KINDS, GgufFile, LazyStrings, open_gguf, parse_gguf
from headrace.models.gguf_model import describe_gguf
from headrace.models.weights import RawTensor, dequantise

CORPUS = Path(__file__).parent.parent / "corpus" / "gguf"
EXPECTED: dict[str, str] = json.loads((CORPUS / "expected.json").read_text())
MEMORY_LIMIT = 100 << 20


def parse(data: bytes) -> GgufFile:
    return parse_gguf(np.frombuffer(data, np.uint8))


def read_everything(data: bytes) -> None:
    """All that a user of the file would touch: metadata to the last string, tensors, the model it means."""
    file = parse(data)
    for value in file.metadata.values():
        if isinstance(value, LazyStrings):
            list(value)
    for tensor in file.tensors.values():
        assert file.data(tensor).size == tensor.size
    _, weights = describe_gguf(file)
    for name in weights.names():
        weights.tensor(name)


def outcome(data: bytes) -> str:
    """``"read"`` or the refusal; anything else escapes and fails the test."""
    try:
        read_everything(data)
    except HeadraceError as error:
        refusal = error
    else:
        return "read"
    assert refusal.code == "model_file"
    assert len(refusal.message) <= MAX_MESSAGE
    return refusal.message


def test_the_encodings_are_the_formats() -> None:
    theirs = {int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {number: theirs[number] for number in KINDS} == KINDS


def test_agrees_with_the_format_library_on_a_file_written_by_it(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint32("n", 7)
    writer.add_float64("f", 0.5)
    writer.add_bool("yes", True)
    writer.add_array("words", ["a", "ä", ""])
    writer.add_array("numbers", [1, -2, 3])
    values = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    writer.add_tensor("plain", values)
    writer.add_tensor(
        "packed", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_gguf(path)
    assert (file.metadata["n"], file.metadata["f"], file.metadata["yes"]) == (7, 0.5, True)
    words, numbers = file.metadata["words"], file.metadata["numbers"]
    assert isinstance(words, LazyStrings)
    assert isinstance(numbers, np.ndarray)
    assert (list(words), words[1], words[1:], len(words)) == (["a", "ä", ""], "ä", ["ä", ""], 3)
    assert numbers.tolist() == [1, -2, 3]
    plain, packed = file.tensors["plain"], file.tensors["packed"]
    assert (plain.kind, plain.shape, packed.kind, packed.size) == ("F32", (3, 64), "Q8_0", 3 * 2 * 34)
    assert np.array_equal(file.data(plain).view(np.float32).reshape(3, 64), values)
    assert not file.data(plain).flags.writeable


@pytest.mark.parametrize("version", [2, 3])
def test_reads_a_tiny_model(version: int) -> None:
    made = tiny_llama()
    made.version = version
    data = made.build()
    assert outcome(data) == "read"
    assert parse(data).version == version


def test_boolean_arrays_become_booleans() -> None:
    made = GgufBytes([("flags", array(BOOL, [1, 0, 1]))]).build()
    flags = parse(made).metadata["flags"]
    assert isinstance(flags, np.ndarray)
    assert flags.dtype == np.bool_
    assert flags.tolist() == [True, False, True]


def test_alignment_of_the_file_counts() -> None:
    made = tiny_llama(**{"general.alignment": scalar(U32, 64)})
    made.alignment = 64
    file = parse(made.build())
    assert min(tensor.start for tensor in file.tensors.values()) % 64 == 0


def test_strings_are_checked_when_first_read() -> None:
    made = tiny_llama(**{"tokenizer.ggml.tokens": array(STRING, [b"ok", b"\xff"])})
    file = parse(made.build())
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, LazyStrings)
    with pytest.raises(HeadraceError, match=r"tokenizer\.ggml\.tokens.*UTF-8"):
        tokens[0]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_corpus_is_refused_for_the_right_reason(name: str) -> None:
    with pytest.raises(HeadraceError, match=EXPECTED[name]) as caught:
        open_gguf(CORPUS / f"{name}.gguf")
    assert caught.value.code == "model_file"
    assert caught.value.message.startswith(f"{name}.gguf: ")
    assert str(CORPUS) not in caught.value.message


def test_every_corpus_file_has_an_expectation() -> None:
    assert {path.stem for path in CORPUS.glob("*.gguf")} == set(EXPECTED)


def test_every_truncation_is_refused() -> None:
    data = tiny_llama().build()
    for size in [*range(0, 2500), *range(2500, len(data), 997)]:
        assert outcome(data[:size]) != "read", size


_WORDS = (
    0,
    1,
    7,
    31,
    32,
    255,
    2**16,
    2**20,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**61,
    2**63 - 1,
    2**63,
    2**64 - 32,
    2**64 - 1,
)


def _flip(data: bytearray, rng: np.random.Generator, head: int) -> None:
    data[int(rng.integers(head))] = int(rng.integers(256))


def _word(data: bytearray, rng: np.random.Generator, head: int) -> None:
    struct.pack_into("<Q", data, int(rng.integers(head - 8)), _WORDS[rng.integers(len(_WORDS))])


def _half_word(data: bytearray, rng: np.random.Generator, head: int) -> None:
    struct.pack_into("<I", data, int(rng.integers(head - 4)), int(rng.integers(16)) if rng.random() < 0.7 else 2**32 - 1)


def _cut(data: bytearray, rng: np.random.Generator, head: int) -> None:
    start = int(rng.integers(head))
    del data[start : start + int(rng.integers(1, 64))]


def _repeat(data: bytearray, rng: np.random.Generator, head: int) -> None:
    start, size = int(rng.integers(head)), int(rng.integers(1, 64))
    data[start:start] = data[start : start + size]


_MUTATIONS: tuple[Callable[[bytearray, np.random.Generator, int], None], ...] = (_flip, _word, _half_word, _cut, _repeat)


def test_fuzz_mutations_are_read_or_refused() -> None:
    """Damage in the structured part of a good model, at random places: 3,000 files in bounded memory."""
    good = tiny_llama().build()
    head = min(tensor.start for tensor in parse(good).tensors.values())
    refusals: set[str] = set()
    rng = np.random.default_rng(20)
    tracemalloc.start()
    try:
        for _ in range(3000 * TIMES):
            data = bytearray(good)
            for _ in range(int(rng.integers(1, 4))):
                _MUTATIONS[rng.integers(len(_MUTATIONS))](data, rng, head)
            refusals.add(outcome(bytes(data)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT
    assert "read" in refusals
    assert len(refusals) > 100, "the mutations reach too few of the checks"


@given(st.binary(max_size=400))
@settings(max_examples=200 * TIMES, deadline=None)
def test_fuzz_arbitrary_bytes_after_a_header(tail: bytes) -> None:
    assert outcome(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + tail) != "read"


def test_hostile_vocabulary_stays_within_memory() -> None:
    """The most strings that fit the limits cost less than 100 MB when all are read."""
    count = 1 << 20
    strings = np.zeros(count, dtype=[("n", "<u8"), ("text", "u1", 2)])
    strings["n"] = 2
    strings["text"] = np.frombuffer(np.arange(count, dtype="<u2").tobytes(), np.uint8).reshape(-1, 2) % 128
    made = GgufBytes([("words", array(STRING, [], count=count) + strings.tobytes())]).build()
    words = parse(made).metadata["words"]
    assert isinstance(words, LazyStrings)
    held = list(words)
    assert len(held) == count
    assert sum(map(sys.getsizeof, held)) + sys.getsizeof(held) < MEMORY_LIMIT


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name in ("pipe.gguf", "empty.gguf", "missing.gguf", "."):
        with pytest.raises(HeadraceError) as caught:
            open_gguf(tmp_path / name)
        assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("kind", list(gguf.GGML_QUANT_SIZES), ids=lambda kind: kind.name)
def test_every_kind_of_the_format_decodes_or_is_refused_by_name(kind: gguf.GGMLQuantizationType) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = RawTensor(kind.name, (2, block), np.zeros(2 * size, np.uint8))
    try:
        shape, message = dequantise(raw).shape, ""
    except HeadraceError as error:
        shape, message = (), error.message
    assert shape == (2, block) or kind.name in message
