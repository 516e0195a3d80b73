"""Roles: what is refused, who takes what, and who takes a request over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.placement.load import Load
from headrace.placement.roles import PullRule, Role, check_roles, for_prompts, for_tokens, who_pulls


def test_roles_that_serve_are_taken() -> None:
    assert check_roles((), 3) == ("all", "all", "all")
    assert check_roles(("prefill", "decode"), 2) == ("prefill", "decode")
    assert check_roles(("decode", "all"), 2) == ("decode", "all")
    assert check_roles(("all",), 1) == ("all",)


@pytest.mark.parametrize(
    ("roles", "instances", "says"),
    [
        (("prefill", "decoder"), 2, "not 'decoder'"),
        (("prefill", "decode"), 3, "2 roles were given for 3 instances"),
        (("prefill", "prefill"), 2, "must be all or decode"),
        (("decode",), 1, "must be all or prefill"),
    ],
)
def test_roles_that_cannot_serve_are_refused(roles: tuple[str, ...], instances: int, says: str) -> None:
    with pytest.raises(HeadraceError, match=says) as caught:
        check_roles(roles, instances)
    assert caught.value.param == "roles"


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
