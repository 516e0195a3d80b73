"""Matches found by hash chains against looking at every place."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.speculation.lookup import OwnRepeats
from headrace.speculation.occurrences import GRAM, LONGEST, Occurrences
from headrace.speculation.proposer import Ask, Proposal, Stream
from headrace.speculation.proposers import open_proposers


@given(st.lists(st.integers(0, 3), max_size=60), st.data())
def test_a_match_is_one_and_the_longest_of_the_newest(tokens: list[int], data: st.DataObject) -> None:
    growing: list[int] = []
    index = Occurrences(growing)
    for token in tokens:
        growing.append(token)
        if data.draw(st.booleans()):
            index.catch_up()
    index.catch_up()
    lengths = {place: index.matched(growing, place) for place in range(1, len(growing))}
    match = index.longest(growing)
    best = max(lengths.values(), default=0)
    if match is None:
        assert best < GRAM
    else:
        assert growing[match.place - match.length : match.place] == growing[len(growing) - match.length :]
        assert lengths[match.place] == match.length >= GRAM


def test_the_longest_match_wins_over_the_newest() -> None:
    tokens = [9, 1, 2, 3, 4, 50, 7, 2, 3, 4, 60, 9, 1, 2, 3, 4]
    index = Occurrences(tokens)
    index.catch_up()
    match = index.longest(tokens)
    assert match is not None
    assert (match.place, match.length) == (5, 5)


def test_long_texts_are_followed_to_their_end() -> None:
    rng = random.Random(0)
    text = [rng.randrange(49_000) for _ in range(3000)]
    stream = Stream(1, [*text, 7, 7, *text[:40]], len(text))
    lookup = OwnRepeats()
    for place in range(40, 200):
        [proposal] = lookup.propose([Ask(stream, 8)])
        assert proposal is not None
        assert list(proposal.tokens) == text[place : place + 8]
        assert proposal.grades[0] == (len(lookup.grades) - 1 if place >= LONGEST else proposal.grades[0])
        stream.tokens.append(text[place])
    lookup.ended(stream)


def test_nothing_is_proposed_of_what_says_nothing_twice() -> None:
    stream = Stream(1, list(range(500)), 400)
    assert OwnRepeats().propose([Ask(stream, 8)]) == [None]


def test_the_trunk_of_a_tree_takes_the_first_branches() -> None:
    tree = Proposal([10, 11, 12, 13, 14], [4, 3, 2, 1, 0], [-1, -1, 0, 0, 2])
    assert tree.trunk == Proposal([10, 12, 14], [4, 2, 0])
    assert Proposal([1, 2], [0, 0]).trunk.tokens == [1, 2]


@pytest.mark.parametrize("choice", ["lokup", "", "lookup,lookup", "auto,lookup", "lookup,off", "draft:", "auto,draft:a,draft:b"])
def test_unknown_proposers_are_refused_by_name(choice: str) -> None:
    with pytest.raises(HeadraceError) as refused:
        open_proposers(choice)
    assert (refused.value.code, refused.value.param) == ("invalid_setting", "speculation")
    assert open_proposers("off") == []
    assert [proposer.name for proposer in open_proposers("lookup")] == ["lookup"]
