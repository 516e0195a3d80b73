"""The file of packed matrices: whole or refused, whatever byte is wrong and wherever it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.kernels._native import ThreadPool, checksum
from headrace.kernels.packed_file import ALIGNMENT, Bytes, PackedFileError, read, write

KEY = "a key"
NAMES = ["first", "second", "third"]
POOL = ThreadPool(2)
MASK = 2**64 - 1


def panels(seed: int = 1) -> list[Bytes]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, size, np.uint8) for size in (320, 4096, 5000)]


def written(folder: Path) -> Path:
    path = folder / "a.packed"
    write(path, KEY, zip(NAMES, panels(), strict=True), POOL)
    return path


def refusal(path: Path) -> str | None:
    """Why the file is refused; ``None`` when it is read, which must then give the very bytes that were written."""
    try:
        found = read(path, KEY, NAMES, POOL)
    except PackedFileError as error:
        return str(error)
    for one, other in zip(found, panels(), strict=True):
        np.testing.assert_array_equal(one, other)
    return None


def slow_checksum(data: bytes) -> int:
    """The definition, in Python's own numbers."""
    factor = 0x9E3779B97F4A7C15

    def mix(total: int, word: int) -> int:
        product = (total ^ word) * factor & MASK
        return product ^ product >> 29

    total = mix(factor, len(data))
    for start in range(0, len(data), 1 << 18):
        piece = data[start : start + (1 << 18)]
        lanes = [(lane + 1) * factor & MASK for lane in range(8)]
        for number, at in enumerate(range(0, len(piece), 8)):
            lanes[number % 8] = mix(lanes[number % 8], int.from_bytes(piece[at : at + 8], "little"))
        own = len(piece)
        for lane in lanes:
            own = mix(own, lane)
        total = mix(total, own)
    return total


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 65, 200, (1 << 18) - 1, (1 << 18) + 13])
def test_checksum_is_its_definition_with_any_threads(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert checksum(data, POOL) == checksum(data, ThreadPool(1)) == slow_checksum(data.tobytes())


@given(st.binary(min_size=1, max_size=300), st.data())
def test_checksum_sees_every_flipped_bit(content: bytes, data: st.DataObject) -> None:
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    other = bytearray(content)
    other[at] ^= 1 << bit
    assert checksum(np.frombuffer(content, np.uint8), POOL) != checksum(np.frombuffer(bytes(other), np.uint8), POOL)


def test_what_was_written_is_read_from_aligned_read_only_memory(tmp_path: Path) -> None:
    found = read(written(tmp_path), KEY, NAMES, POOL)
    for one, other in zip(found, panels(), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.ctypes.data % ALIGNMENT == 0
        assert not one.flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a.packed"]
    assert (tmp_path / "a.packed").stat().st_mode & 0o077 == 0


def test_every_flipped_byte_is_seen(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    starts = [-(-start // ALIGNMENT) * ALIGNMENT for start in (64, ALIGNMENT + 320, 2 * ALIGNMENT + 4096)]
    used = {*range(56)}
    for start, values in zip(starts, panels(), strict=True):
        used |= set(range(start, start + len(values), 61))
    used |= set(range(starts[-1] + 5000, len(whole)))
    for at in sorted(used):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        assert refusal(path) is not None, at


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        length = data.draw(st.integers(0, 40))
        whole[at : at + length] = data.draw(st.binary(max_size=40))
    path.write_bytes(whole)
    refusal(path)  # bytes between the matrices may be anything; whatever is read is what was written


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for end in (*range(0, 70), *range(100, len(whole), 307), len(whole) - 1):
        path.write_bytes(whole[:end])
        assert refusal(path) is not None, end
    path.write_bytes(whole + b"x")
    assert refusal(path) is not None


def forged(path: Path, directory: object, **changes: int) -> None:
    """A file whose sums are right and whose numbers lie."""
    body = directory if isinstance(directory, bytes) else msgspec.json.encode(directory)
    place = 4 * ALIGNMENT
    fields = {"version": 1, "size": place + len(body), "place": place, "length": len(body)} | changes
    total = checksum(np.frombuffer(body, np.uint8), POOL)
    head = b"headpack" + b"".join(fields[name].to_bytes(8, "little") for name in ("version", "size", "place", "length"))
    head += total.to_bytes(8, "little")
    head += checksum(np.frombuffer(head, np.uint8), POOL).to_bytes(8, "little")
    path.write_bytes(head + bytes(place - len(head)) + body)
    path.chmod(0o600)


ZERO_SUM = slow_checksum(bytes(64))
GOOD = [["first", 4096, 64, ZERO_SUM], ["second", 8192, 64, ZERO_SUM], ["third", 12288, 64, ZERO_SUM]]
LIES = {
    "another key": ({"key": "other", "entries": GOOD}, "another model"),
    "names out of order": ({"key": KEY, "entries": GOOD[::-1]}, "not the matrices"),
    "one too few": ({"key": KEY, "entries": GOOD[:2]}, "not the matrices"),
    "one twice": ({"key": KEY, "entries": [GOOD[0], GOOD[0], GOOD[1], GOOD[2]]}, "not the matrices"),
    "unaligned": ({"key": KEY, "entries": [["first", 4097, 64, 0], *GOOD[1:]]}, "no place"),
    "before the file": ({"key": KEY, "entries": [["first", -4096, 64, 0], *GOOD[1:]]}, "no place"),
    "over the header": ({"key": KEY, "entries": [["first", 0, 64, 0], *GOOD[1:]]}, "no place"),
    "behind the file": ({"key": KEY, "entries": [*GOOD[:2], ["third", 1 << 40, 64, 0]]}, "no place"),
    "beyond its end": ({"key": KEY, "entries": [*GOOD[:2], ["third", 12288, 1 << 62, 0]]}, "no place"),
    "empty": ({"key": KEY, "entries": [["first", 4096, 0, 0], *GOOD[1:]]}, "no place"),
    "overlapping": ({"key": KEY, "entries": [["first", 4096, 5000, 0], *GOOD[1:]]}, "first is damaged"),
    "a number too large": (b'{"key":"a key","entries":[["first",4096,1e999,0]]}', "can't be read"),
    "no JSON": (b"{", "can't be read"),
    "not UTF-8": (b'{"key":"\xff","entries":[]}', "can't be read"),
    "an unknown field": (b'{"key":"a key","entries":[],"more":1}', "can't be read"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_with_right_sums_are_refused(lie: str, tmp_path: Path) -> None:
    directory, message = LIES[lie]
    forged(tmp_path / "a.packed", directory)
    with pytest.raises(PackedFileError, match=message):
        read(tmp_path / "a.packed", KEY, NAMES, POOL)


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"size": 5}, {"place": 1 << 62}, {"length": 1 << 40}, {"length": 2**64 - 1}, {"place": 2**64 - 1}]
)
def test_headers_with_right_sums_that_lie_are_refused(changes: dict[str, int], tmp_path: Path) -> None:
    forged(tmp_path / "a.packed", {"key": KEY, "entries": GOOD}, **changes)
    with pytest.raises(PackedFileError):
        read(tmp_path / "a.packed", KEY, NAMES, POOL)


def test_files_of_others_and_no_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.chmod(0o666)
    assert "only its user" in (refusal(path) or "")
    link = tmp_path / "link.packed"
    link.symlink_to(path)
    assert refusal(link) is not None
    os.mkfifo(tmp_path / "pipe.packed")
    assert refusal(tmp_path / "pipe.packed") is not None
    for missing in (tmp_path / "none.packed", path / "below.packed"):
        with pytest.raises(FileNotFoundError):
            read(missing, KEY, NAMES, POOL)


def test_a_failing_source_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> object:
        yield "first", panels()[0]
        raise OSError("the end")

    with pytest.raises(OSError, match="the end"):
        write(tmp_path / "a.packed", KEY, failing(), POOL)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from headrace.kernels._native import ThreadPool
from headrace.kernels.packed_file import write

def slow():
    yield "first", np.zeros(1 << 20, np.uint8)
    print("under way", flush=True)
    time.sleep(60)

write(Path(sys.argv[1]), "a key", slow(), ThreadPool(1))
"""


def test_a_killed_writer_leaves_no_broken_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        process.send_signal(signal.SIGKILL)
    assert refusal(path) is None
