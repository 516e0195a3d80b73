"""A vocabulary in one piece of memory against the list it was made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.text.packed_tokens import PackedTokens, pack_tokens
from headrace.text.tokenizer import first_ids

TOKENS = st.lists(
    st.one_of(st.none(), st.text(max_size=6), st.sampled_from(["a", "ab", "b", "\u2581a", "\udc80", "ÿ", "þ"])), max_size=40
)


@given(TOKENS)
def test_it_is_the_list(tokens: list[str | None]) -> None:
    packed = PackedTokens(pack_tokens(tokens))
    assert list(packed) == tokens
    assert packed[1:-1] == tokens[1:-1]
    for token, index in first_ids(tokens).items():
        if token is not None:
            assert packed.find(token) == index
    assert packed.find("no such token") is None
    with pytest.raises(IndexError):
        packed[len(tokens)]


@pytest.mark.parametrize("packed", [b"", b"abc", b"\xffabc", b"abc\xff"])
def test_other_bytes_are_refused(packed: bytes) -> None:
    with pytest.raises(HeadraceError, match="damaged"):
        PackedTokens(packed)
