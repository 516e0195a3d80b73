"""Greetings and sealed records: what is whole passes, anything else ends the connection."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import __version__
from headrace.engine.sealing import (
    FULL,
    OTHER_VERSION,
    WELCOME,
    Hello,
    Opener,
    Seal,
    answer_bytes,
    check_key,
    hello_bytes,
    read_answer,
    read_hello,
    session_keys,
    verdict_of,
)
from headrace.engine.transport import FrameError
from headrace.errors import HeadraceError

KEY = b"a key of thirty-two bytes or so.."
A, B = b"a" * 32, b"b" * 32


@settings(max_examples=40)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.data())
def test_records_pass_whole_however_they_are_cut(payloads: list[bytes], data: st.DataObject) -> None:
    seal, opener = Seal(KEY), Opener(KEY)
    stream = b"".join(seal.close(payload) for payload in payloads)
    got = b""
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        got += opener.feed(stream[:count])
        stream = stream[count:]
    assert got == b"".join(payloads)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_no_changed_byte_passes(payload: bytes, data: st.DataObject) -> None:
    record = bytearray(Seal(KEY).close(payload))
    at = data.draw(st.integers(0, len(record) - 1))
    record[at] ^= data.draw(st.integers(1, 255))
    with suppress(FrameError):
        assert Opener(KEY).feed(bytes(record)) == b""  # a longer length waits for more


@given(st.binary(max_size=200))
def test_hostile_bytes_open_nothing(data: bytes) -> None:
    with suppress(FrameError):
        assert Opener(KEY).feed(data) == b""


def test_replayed_skipped_and_foreign_records_are_refused() -> None:
    seal = Seal(KEY)
    first, second = seal.close(b"one"), seal.close(b"two")
    for stream in (first + first, second, Seal(B).close(b"one")):
        with pytest.raises(FrameError):
            Opener(KEY).feed(stream)
    large = bytes(3 << 20)
    assert Opener(KEY).feed(Seal(KEY).close(large)) == large


def test_a_greeting_proves_both_sides() -> None:
    hello = Hello(B, __version__, 4711)
    said = hello_bytes(KEY, A, hello)
    assert read_hello(KEY, A, said) == hello
    for key, nonce, data in ((A, A, said), (KEY, B, said), (KEY, A, said[:-1]), (KEY, A, b"x" + said[1:])):
        with pytest.raises(FrameError):
            read_hello(key, nonce, data)
    answer = answer_bytes(KEY, A, B, WELCOME)
    assert read_answer(KEY, A, B, answer) == WELCOME
    for key, nonce, data in ((A, A, answer), (KEY, B, answer), (KEY, A, bytes([FULL]) + answer[1:]), (KEY, A, b"")):
        with pytest.raises(FrameError):
            read_answer(key, nonce, B, data)
    keys = session_keys(KEY, A, B)
    assert len({keys.to_engine, keys.to_api, session_keys(KEY, B, A).to_api}) == 3


def test_verdicts() -> None:
    assert verdict_of(Hello(B, __version__, 1), 1) == WELCOME
    assert verdict_of(Hello(B, __version__, 1), 0) == FULL
    assert verdict_of(Hello(B, "0.0.0", 1), 1) == OTHER_VERSION
    assert check_key(b" 0123456789abcdef\n") == b"0123456789abcdef"
    with pytest.raises(HeadraceError, match="16 to"):
        check_key(b"short")
