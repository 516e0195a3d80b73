"""Which models fit together, which must leave, and how the pool is split: against a slow search over all choices."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from headrace.server.fit_plan import ENGINE_BYTES, Held, Need, describe, process_bytes, split_pool, who_leaves

HELD = st.lists(st.builds(Held, st.just(""), st.integers(0, 50), st.booleans(), st.booleans(), st.floats(0, 10)), max_size=6).map(
    lambda found: [Held(str(n), one.bytes, one.pinned, one.busy, one.last_used) for n, one in enumerate(found)]
)


@given(st.integers(0, 100), st.integers(0, 200), HELD)
def test_it_finds_a_way_whenever_there_is_one_and_nobody_leaves_without_need(need: int, room: int, held: list[Held]) -> None:
    free = [one for one in held if not one.pinned]
    everything = sum(one.bytes for one in held)
    ways = [
        {one.name for one in choice}
        for count in range(len(free) + 1)
        for choice in combinations(free, count)
        if need + everything - sum(one.bytes for one in choice) <= room
    ]
    leaving = who_leaves(need, room, held)
    if leaving is None:
        assert not ways
        return
    assert set(leaving) in ways
    assert not any(way < set(leaving) for way in ways), "fewer of them would have done"


def test_idle_models_leave_before_busy_ones_and_old_ones_before_new_ones() -> None:
    held = [
        Held("busy", 10, pinned=False, busy=True, last_used=0.0),
        Held("new", 10, pinned=False, busy=False, last_used=5.0),
        Held("old", 10, pinned=False, busy=False, last_used=1.0),
        Held("pinned", 10, pinned=True, busy=False, last_used=0.0),
    ]
    assert who_leaves(10, 50, held) == []
    assert who_leaves(10, 40, held) == ["old"]
    assert who_leaves(10, 30, held) == ["old", "new"]
    assert who_leaves(10, 20, held) == ["old", "new", "busy"]
    assert who_leaves(11, 20, held) is None


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 1000), max_size=5), st.integers(0, 2000))
def test_nobody_gets_more_pages_than_it_wants_nor_all_more_than_there_are(wanted: dict[str, int], total: int) -> None:
    parts = split_pool(wanted, total)
    assert parts.keys() == wanted.keys()
    assert all(parts[name] <= want for name, want in wanted.items())
    assert sum(parts.values()) <= total
    assert sum(wanted.values()) > total or parts == wanted


def test_the_plan_names_every_part_and_says_what_never_fits() -> None:
    lines = describe({"a": Need(100 << 20, 50 << 20, 10 << 20), "b": Need(1 << 40, 0, 0)}, 1000 << 20)
    assert lines[0] == "a needs 160 MiB: weights 100, pages 50, process 10"
    assert lines[1].endswith("never fits")
    assert "leaves" in lines[2]
    assert "all fit" in describe({"a": Need(1, 1, 1)}, 3)[-1]


def test_a_large_vocabulary_counts_and_so_does_each_engine() -> None:
    small, large = process_bytes(49_152), process_bytes(262_144)
    assert large > 220 * 2**20, "a tokenizer of Gemma's size takes as much by itself"
    assert small < 192 * 2**20 < large
    assert process_bytes(49_152, 3) - small == 2 * ENGINE_BYTES
