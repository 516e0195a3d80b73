"""Streams of text against the plain oracle: decode everything, then cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import BOTH, SMOL, tokenizer

from headrace.text.text_stream import TextStream
from headrace.text.tokenizer import Tokenizer

STOPS = ("a", "ab", "aba", "\n\n", "\u00e9", "\U0001f600", "b\n", "STOP", "\ufffd", "Hello world", "o w")


def oracle(text: str, stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The plain way: the first stop string to be complete, of two that end together the longer."""
    for end in range(1, len(text) + 1):
        for entry in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(entry):
                return (text[:end] if include else text[: end - len(entry)]), entry
    return text, None


def run(
    tok: Tokenizer, ids: list[int], sizes: list[int], stop: tuple[str, ...], include: bool
) -> tuple[list[str], str | None, int]:
    stream = TextStream(tok, stop, include_stop=include)
    deltas, reason, used, at = [], None, 0, 0
    for size in [*sizes, len(ids)]:
        delta = stream.push(ids[at : at + size])
        at += size
        deltas.append(delta.text)
        reason = reason or delta.finished_by_stop
        used += len(delta.pieces)
    last = stream.finish()
    assert stream.finished
    assert stream.push(ids) == ("", None, ())
    return [*deltas, last.text], reason or last.finished_by_stop, used


@pytest.mark.parametrize("name", BOTH)
def test_deltas_join_to_the_whole_however_it_is_cut(name: str) -> None:
    tok = tokenizer(name)
    words = ["a", "b", "\n", " ", "\u00e9", "\U0001f600", "STOP", "ST", "Hello world", "\u65e5\u672c", "\ufffd", "aba"]
    texts = st.lists(st.sampled_from(words), max_size=15).map("".join).map(tok.encode)
    raw = st.lists(st.integers(0, min(tok.vocab_size, 2000) - 1), max_size=20)
    byte_like = st.lists(st.sampled_from([*tok.encode("\U0001f600\u00e9\u0627"), *tok.encode("ab STOP\n")]), max_size=20)

    @settings(max_examples=600, deadline=None)
    @given(
        texts | raw | byte_like,
        st.lists(st.integers(1, 4), max_size=20),
        st.lists(st.sampled_from(STOPS), max_size=3).map(tuple),
        st.booleans(),
    )
    def random_streams(ids: list[int], sizes: list[int], stop: tuple[str, ...], include: bool) -> None:
        deltas, reason, used = run(tok, ids, sizes, stop, include)
        wanted, wanted_reason = oracle(tok.decode(ids), stop, include)
        assert ("".join(deltas), reason) == (wanted, wanted_reason)
        if reason is None:
            assert used == len(ids)

    random_streams()


@pytest.mark.model
def test_nothing_is_sent_that_may_become_a_stop_string() -> None:
    tok = tokenizer(SMOL)
    stream = TextStream(tok, ("###",))
    sent = "".join(stream.push([index]).text for index in tok.encode("one ##"))
    assert sent == "one "
    assert stream.finish().text == "##"


@pytest.mark.model
def test_half_a_character_waits() -> None:
    tok = tokenizer(SMOL)
    stream = TextStream(tok)
    ids = tok.encode("\U0001f600")
    assert len(ids) > 1
    deltas = [stream.push([index]).text for index in ids]
    assert deltas == [*[""] * (len(ids) - 1), "\U0001f600"]
    stream = TextStream(tok)
    assert stream.push(ids[:1]).text == ""
    assert stream.finish().text == "\ufffd"


@pytest.mark.model
def test_pieces_have_bytes_and_offsets() -> None:
    tok = tokenizer(SMOL)
    ids = tok.encode("Hi \U0001f600 there")
    delta = TextStream(tok).push(ids)
    assert [piece.token for piece in delta.pieces] == ids
    assert b"".join(piece.data for piece in delta.pieces).decode() == delta.text == "Hi \U0001f600 there"
    assert delta.pieces[-1].offset == len("Hi \U0001f600")


@pytest.mark.model
def test_special_tokens_are_skipped_unless_wanted() -> None:
    tok = tokenizer(SMOL)
    ids = [1, *tok.encode("x"), 2]
    assert TextStream(tok).push(ids).text == "x"
    assert TextStream(tok, skip_special=False).push(ids).text == "<|im_start|>x<|im_end|>"
    assert TextStream(tok, keep={2}).push(ids).text == "x<|im_end|>"


@pytest.mark.model
def test_a_token_costs_microseconds() -> None:
    tok = tokenizer(SMOL)
    ids = tok.encode("The quick brown fox \U0001f600 jumps over the lazy dog. " * 20)
    streams = [TextStream(tok, ("\n\nUser:", "###", "STOP")) for _ in range(8)]
    start = time.perf_counter()
    for index in ids:
        for stream in streams:
            stream.push([index])
    assert (time.perf_counter() - start) / (len(ids) * len(streams)) < 60e-6
