"""The contract of address spaces. Another implementation joins ``SPACES``; it needs nothing but a memory file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from headrace.errors import HeadraceError
from headrace.memory.address_space import LinuxSpace

SPACES: dict[str, Callable[[int, int], LinuxSpace]] = {"linux": LinuxSpace}
GRANULES = 16


@pytest.fixture(params=SPACES, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, GRANULES * 4096)
    for granule in range(GRANULES):
        os.pwrite(descriptor, bytes([granule + 1]) * 4096, granule * 4096)
    yield descriptor
    os.close(descriptor)


def shown(space: LinuxSpace, granule: int) -> int:
    values = set(space.memory[granule * space.granule : (granule + 1) * space.granule].tolist())
    assert len(values) == 1
    return int(values.pop())


def test_pieces_are_shown_replaced_and_removed(kind: str, file: int) -> None:
    space = SPACES[kind](file, 64 * 4096)
    size = space.granule
    space.map(8 * size, 2 * size, 3 * size, writable=False)
    assert [shown(space, granule) for granule in (8, 9, 10)] == [3, 4, 5]
    space.map(9 * size, 0, size, writable=False)
    assert [shown(space, granule) for granule in (8, 9, 10)] == [3, 1, 5]
    space.unmap(8 * size, size)
    space.map(8 * size, 15 * size, size, writable=False)
    assert [shown(space, granule) for granule in (8, 9, 10)] == [16, 1, 5]


def test_one_part_in_many_places_is_one_memory(kind: str, file: int) -> None:
    space = SPACES[kind](file, 64 * 4096)
    size = space.granule
    space.map(0, 0, 2 * size, writable=True)
    for place in range(10, 20):
        space.map(place * size, size, size, writable=False)
    space.memory[size : 2 * size] = 200
    assert [shown(space, place) for place in range(10, 20)] == [200] * 10
    assert os.pread(file, 1, size) == b"\xc8"
    assert shown(space, 0) == 1


def test_reserving_takes_no_memory_and_much_more_than_there_is(kind: str, file: int) -> None:
    before = _resident()
    space = SPACES[kind](file, 2**42)
    space.map(2**41, 0, space.granule, writable=False)
    assert space.memory[2**41] == 1
    assert _resident() - before < 2**20


def test_a_range_is_given_back_with_its_last_array(kind: str, file: int) -> None:
    space = SPACES[kind](file, 64 * 4096)
    space.map(0, 0, 4096, writable=False)
    address, view = space.memory.ctypes.data, space.memory[:10]
    del space
    assert view[0] == 1
    assert _is_mapped(address)
    del view
    assert not _is_mapped(address)


def test_showing_while_others_read_elsewhere(kind: str, file: int) -> None:
    space = SPACES[kind](file, 64 * 4096)
    size = space.granule
    space.map(0, 0, size, writable=False)
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(shown(space, 0))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(2000):
        space.map(4096 * (1 + turn % 60), turn % GRANULES * size, size, writable=False)
        assert shown(space, 1 + turn % 60) == turn % GRANULES + 1
    stop.set()
    reader.join()
    assert seen == {1}


@pytest.mark.parametrize(
    "act",
    [
        "space.map(0, 0, 4096, writable=False); space.memory[5] = 1",
        "space.memory[5]",
        "space.map(0, 0, 4096, writable=True); space.memory[5] = 1; space.unmap(0, 4096); space.memory[5]",
    ],
    ids=["writing what is frozen", "reading what was never shown", "reading what is shown no more"],
)
def test_faults(kind: str, act: str) -> None:
    code = (
        "import os\nfrom headrace.memory import address_space\n"
        "file = os.memfd_create('test'); os.ftruncate(file, 4096)\n"
        f"space = address_space.{SPACES[kind].__name__}(file, 8192)\n{act}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGSEGV, done.stderr


def test_too_many_addresses_are_refused(kind: str, file: int) -> None:
    with pytest.raises(HeadraceError) as caught:
        SPACES[kind](file, 2**60)
    assert caught.value.code == "invalid_setting"


def test_mappings_are_counted(kind: str) -> None:
    """In a process of its own: beside other tests' threads, mappings come and go that are none of this one's."""
    code = (
        "import os\nfrom headrace.memory import address_space\n"
        "file = os.memfd_create('test'); os.ftruncate(file, 16 * 4096)\n"
        f"space = address_space.{SPACES[kind].__name__}(file, 64 * 4096)\nbefore = address_space.maps_in_use()\n"
        "for place in range(1, 61, 2):\n    space.map(place * 4096, 0, 4096, writable=False)\n"
        "print(address_space.map_limit(), address_space.maps_in_use() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True, text=True)
    limit, more = map(int, done.stdout.split())
    assert limit >= 1000
    assert more == pytest.approx(60, abs=4)


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


def _is_mapped(address: int) -> bool:
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            start, _, end = line.split()[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                return True
    return False


def test_arrays_do_not_copy(kind: str, file: int) -> None:
    space = SPACES[kind](file, 8192)
    assert space.memory.base is not None
    assert space.memory.dtype == np.uint8
    assert len(space.memory) == space.size == 8192
