"""Options: declaration, introspection and validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.settings.declaration import option, options_of, validate
from headrace.settings.nearest import nearest


@dataclass(frozen=True, slots=True)
class Sample:
    pages: int = option(8, unit="pages", minimum=1, maximum=100, help="How many.")
    rate: float = option(0.5, unit="1/s", minimum=0.0, help="How fast.")
    policy: str = option("fair", choices=("fair", "first", "deadline"), help="Who goes first.")
    names: tuple[str, ...] = option((), help="Some names.")
    budget: float | None = option(None, unit="ms", minimum=1.0, help="Budget.")
    quiet: bool = option(False, help="Say less.")
    inner: int = option(3, help="Only code sets this.", public=False)

    def __post_init__(self) -> None:
        validate(self)


def test_introspection_tells_everything() -> None:
    by_name = {declared.name: declared for declared in options_of(Sample)}
    assert list(by_name) == ["pages", "rate", "policy", "names", "budget", "quiet", "inner"]
    assert by_name["pages"].flag == "--pages"
    assert by_name["pages"].environment == "HEADRACE_PAGES"
    assert by_name["pages"].bounds == "1 … 100"
    assert (by_name["budget"].type, by_name["budget"].optional) == (float, True)
    assert (by_name["names"].type, by_name["names"].many) == (str, True)
    assert not by_name["inner"].public


@pytest.mark.parametrize(
    ("values", "param", "words"),
    [
        ({"pages": 0}, "pages", "at least 1 pages"),
        ({"pages": 101}, "pages", "at most 100 pages"),
        ({"pages": True}, "pages", "must be int"),
        ({"pages": "8"}, "pages", "must be int"),
        ({"rate": float("nan")}, "rate", "finite"),
        ({"rate": None}, "rate", "needs a value"),
        ({"policy": "frist"}, "policy", "did you mean 'first'"),
        ({"names": ["a"]}, "names", "list of str"),
        ({"names": (1,)}, "names", "must be str"),
        ({"budget": 0.5}, "budget", "at least 1.0 ms"),
        ({"quiet": 1}, "quiet", "must be bool"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(HeadraceError) as caught:
        Sample(**values)
    assert caught.value.code == "invalid_setting"
    assert caught.value.param == param
    assert words in caught.value.message


def test_integers_count_as_numbers_where_a_float_is_wanted() -> None:
    assert Sample(rate=2, budget=3).rate == 2


@given(st.integers())
def test_bounds_hold_for_every_integer(pages: int) -> None:
    if 1 <= pages <= 100:
        assert Sample(pages=pages).pages == pages
    else:
        with pytest.raises(HeadraceError):
            Sample(pages=pages)


def test_field_without_declaration_or_of_unusable_type_is_a_programming_error() -> None:
    @dataclass(frozen=True)
    class Plain:
        pages: int = 3

    @dataclass(frozen=True)
    class Odd:
        table: dict[str, int] = option(None)

    with pytest.raises(TypeError, match="not declared"):
        options_of(Plain)
    with pytest.raises(TypeError, match="options are bool"):
        options_of(Odd)


def test_nearest_ignores_case_and_dashes() -> None:
    assert nearest("--Max-Pagse", ["max_pages", "port"]) == "max_pages"
    assert nearest("zzz", ["max_pages", "port"]) is None
