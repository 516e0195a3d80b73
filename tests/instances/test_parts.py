"""The parts of a group that need no process."""

from __future__ import annotations

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit, TokenOutput
from headrace.instances.known_prefixes import KnownPrefixes
from headrace.instances.owners import Owned
from headrace.instances.shape import split_machine


def test_threads_and_cores_are_shared_out() -> None:
    assert [(part.threads, part.cores) for part in split_machine(3, 8, range(8))] == [(3, (0, 1, 2)), (3, (3, 4, 5)), (2, (6, 7))]
    assert [part.cores for part in split_machine(4, 2, range(2))] == [()] * 4
    assert all(part.threads == 1 for part in split_machine(4, 2, range(2)))


def test_beginnings_are_known_by_root_and_chunk() -> None:
    known = KnownPrefixes(16, most=10)
    prompt = list(range(200))
    known.note("a", prompt, 1)
    assert known.find("a", prompt) == {1: 12}
    assert known.find("b", prompt) == {}
    known.note("a", prompt[:64], 0)
    assert known.find("a", prompt) == {0: 4, 1: 12}
    assert known.find("a", [9, *prompt]) == {}
    known.forget(1)
    assert known.find("a", prompt) == {0: 4}
    for start in range(1, 20):
        known.note("a", range(start, start + 64), 0)
    assert known.find("a", prompt) == {}


def test_a_record_says_what_is_left_to_do() -> None:
    owned = Owned(Submit(1, [5, 6], SamplingParams(n=3)))
    assert [(one.index, one.tokens, one.forked) for one in owned.state().choices] == [(0, [], False), (1, [], True), (2, [], True)]
    for choice, token in ((0, 7), (1, 8), (2, 9)):
        owned.note(TokenOutput(1, choice, [token], finish="stop" if choice == 1 else None))
    state = owned.state()
    assert [(one.index, one.tokens, one.forked, one.charged) for one in state.choices] == [(0, [7], False, 2), (2, [9], False, 2)]
    assert state.said
    assert owned.length == 5
