"""A tokenizer in another process against the same one in this process."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from headrace.errors import HeadraceError
from headrace.models.catalog import find_model, open_model
from headrace.server.language_process import LanguageProcess, distant_tokenizer
from headrace.server.language_worker import INNER, MAX_FRAME_BYTES, _answer, receive_frame
from headrace.text.encoder import LibraryEncoder
from headrace.text.open_tokenizer import open_tokenizer
from headrace.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.server, pytest.mark.model]
MODEL = "smollm2"


@pytest.fixture(scope="module")
def process() -> Iterator[LanguageProcess]:
    made = LanguageProcess(MODEL)
    yield made
    made.close()


@pytest.fixture(scope="module")
def distant(process: LanguageProcess) -> Tokenizer:
    return distant_tokenizer(process)


@pytest.fixture(scope="module")
def near() -> Tokenizer:
    return open_tokenizer(open_model(find_model(MODEL)).tokenizer_source)


@settings(max_examples=60, deadline=None)
@given(
    text=st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["<|im_start|>x", "word " * 3000, "é😀" * 900])
    )
)
def test_the_same_ids_and_spans(distant: Tokenizer, near: Tokenizer, text: str) -> None:
    assert distant.encode(text, bos=True) == near.encode(text, bos=True)
    assert distant.encode_with_offsets(text) == near.encode_with_offsets(text)
    assert distant.encode_template(text) == near.encode_template(text)


def test_the_same_vocabulary(distant: Tokenizer, near: Tokenizer, process: LanguageProcess) -> None:
    assert distant.vocab_size == near.vocab_size
    every = range(near.vocab_size)
    assert [distant.token_bytes(token) for token in every] == [near.token_bytes(token) for token in every]
    assert (distant.special_ids, distant.bos_id, distant.eos_ids) == (near.special_ids, near.bos_id, near.eos_ids)
    assert (distant.bos_token, distant.eos_token, distant.add_bos) == (near.bos_token, near.eos_token, near.add_bos)
    assert distant.id_of("<|im_end|>") == near.id_of("<|im_end|>") is not None
    assert process.facts.longest == near.longest_token()
    with pytest.raises(HeadraceError, match="surrogate"):
        distant.encode("\ud800")


def test_many_threads_get_their_own_answers(distant: Tokenizer, near: Tokenizer) -> None:
    texts = [f"text number {number} " * (1 + number % 7) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(distant.encode, texts)) == [near.encode(text) for text in texts]


def test_a_worker_that_was_killed_comes_back(distant: Tokenizer, near: Tokenizer, process: LanguageProcess) -> None:
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert distant.encode("after all") == near.encode("after all")
    assert process.pid != first


def test_what_can_t_be_opened_says_so_and_leaves_no_process() -> None:
    with pytest.raises(HeadraceError) as caught:
        LanguageProcess("no-such-model")
    assert caught.value.code == "model_not_found"


def test_a_closed_one_refuses() -> None:
    made = LanguageProcess(MODEL)
    worker = made.pid
    assert worker is not None
    made.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    with pytest.raises(HeadraceError, match="left the memory"):
        distant_tokenizer(made).encode("anything")


def test_the_second_encoder_answers_where_it_is_asked() -> None:
    whole, letters = (LibraryEncoder(FastTokenizer(BPE(vocab, merges))) for vocab, merges in (VOCABS[0], VOCABS[1]))
    assert _answer(b"\0ab", (whole, letters)) == (2).to_bytes(4, "little")
    assert _answer(bytes((INNER,)) + b"ab", (whole, letters)) == b"\0\0\0\0\1\0\0\0"


VOCABS: tuple[tuple[dict[str, int], list[tuple[str, str]]], ...] = (
    ({"a": 0, "b": 1, "ab": 2}, [("a", "b")]),
    ({"a": 0, "b": 1}, []),
)


def test_a_length_that_is_none_is_not_believed() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "little"))
        with pytest.raises(ConnectionError):
            receive_frame(other)
