"""The scan of bodies agrees with a plain parser, however the bytes are cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.server.protocol.scan import JsonScan

TEXTS = st.text(st.sampled_from('a"\\[]{},é\n'), max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=25,
)


def depth(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max((depth(entry) for entry in (value.values() if isinstance(value, dict) else value)), default=0)


def accepts(body: bytes, cuts: list[int], most: int) -> bool:
    scan = JsonScan(most)
    edges = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    try:
        for start, end in itertools.pairwise(edges):
            scan.feed(body[start:end])
    except HeadraceError as error:
        return error.code != "invalid_value"
    return True


@settings(max_examples=300, deadline=None)
@given(VALUES, st.lists(st.integers(0, 400), max_size=8))
def test_depth_is_the_parsers_depth(value: Any, cuts: list[int]) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    real = depth(value)
    assert accepts(body, cuts, real)
    if real:
        assert not accepts(body, cuts, real - 1)


def test_too_many_values_are_refused() -> None:
    with pytest.raises(HeadraceError, match="too many values"):
        JsonScan(64).feed(b"[" + b"1," * 300_000 + b"1]")
    with pytest.raises(HeadraceError, match="too many values"):
        JsonScan(64).feed(b"[" + b"{}," * 30_000 + b"{}]")
    JsonScan(64).feed(b'"' + b"," * 300_000 + b'"')
