"""Roles: what is refused, who takes what, and who takes a request over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.placement.load import Load
from headrace.placement.roles import PullRule, Role, for_prompts, for_tokens, read_instances, who_pulls


def test_roles_that_serve_are_taken() -> None:
    assert read_instances(("3",)) == ("all", "all", "all")
    assert read_instances(("prefill", "decode")) == ("prefill", "decode")
    assert read_instances(("decode", "all")) == ("decode", "all")
    assert read_instances(("all",)) == ("all",)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("prefill", "decoder"), "not 'decoder'; did you mean 'decode'"),
        (("2", "prefill"), "not '2'"),
        (("prefill", "prefill"), "must be decode or all"),
        (("decode",), "must be prefill or all"),
        (("0",), "must be 1 to 64"),
        (("-1",), "must be 1 to 64"),
        (("9" * 5000,), "must be 1 to 64"),
        ((), "not 0 of them"),
        (("all",) * 65, "not 65 of them"),
    ],
)
def test_instances_that_cannot_serve_are_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(HeadraceError, match=says) as caught:
        read_instances(words)
    assert caught.value.param == "instances"


def test_each_role_takes_its_own_and_anything_rather_than_nothing() -> None:
    role: dict[int, Role] = {0: "prefill", 1: "decode", 2: "all"}
    assert for_prompts([0, 1, 2], role) == [0, 2]
    assert for_tokens([0, 1, 2], role) == [1, 2]
    assert for_prompts([1], role) == [1]
    assert for_tokens([0], role) == [0]


LOADS = st.builds(
    lambda pages, held, waiting, leaving: Load(pages, held=min(held, pages), waiting=waiting, leaving=leaving),
    st.integers(1, 100), st.integers(0, 100), st.integers(0, 2), st.booleans(),
)  # fmt: skip


@given(st.dictionaries(st.integers(0, 5), LOADS, max_size=6), st.integers(0, 60))
def test_nobody_pulls_what_does_not_fit_or_while_others_wait(loads: dict[int, Load], pages: int) -> None:
    able = [
        number
        for number, load in loads.items()
        if not load.leaving and load.waiting == 0 and load.pages - load.held >= pages + PullRule().spare
    ]
    taker = who_pulls(loads, pages)
    assert (taker in able) if able else taker is None
