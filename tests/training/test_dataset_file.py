"""Data files: whole, checked, believed only when they add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.training.dataset_file import Pair, Sample, make_sample, open_dataset, write_dataset

SAMPLES = [make_sample([1, 2, 3], [0, 0, 1]), make_sample([4, 5], [1, 1])]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = write_dataset(tmp_path / "a", SAMPLES, vocab=10)
    data = open_dataset(tmp_path / "a", 10)
    assert (info.samples, info.pairs, info.tokens, info.trained_tokens) == (2, False, 5, 2)
    assert data.info == info
    assert data.sequence(1).tokens.tolist() == [4, 5]
    assert data.sequence(1).weights.tolist() == [0, 1]  # nothing predicts a first token
    write_dataset(tmp_path / "b", [Pair(*SAMPLES)], vocab=10)
    pairs = open_dataset(tmp_path / "b", 10)
    assert (len(pairs), [len(one.tokens) for one in pairs.sequences_of(0)]) == (1, [3, 2])


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "no sample"),
        ([make_sample([1, 99], [0, 1])], "row 1: a token"),
        ([SAMPLES[0], make_sample([1], [1])], "row 2: a sequence has 2"),
        ([make_sample([1, 2], [1, 0])], "row 1: nothing is learnt"),
        ([make_sample([1, 2], [0, float("nan")])], "row 1: a weight"),
        ([make_sample([1, 2, 3], [0, 1])], "row 1: "),
        ([SAMPLES[0], Pair(*SAMPLES)], "row 2: a file holds samples or pairs"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[Sample | Pair], problem: str) -> None:
    with pytest.raises(HeadraceError, match=problem):
        write_dataset(tmp_path / "a", rows, vocab=10)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 200))
def test_damage_is_seen(place: int, value: int, cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        write_dataset(path, SAMPLES, vocab=10)
        whole = bytearray(path.read_bytes())
        damaged = bytearray(whole)
        damaged[place % len(whole)] = value
        damaged = damaged[: len(whole) - cut] if cut < len(whole) else bytearray()
        path.write_bytes(damaged)
        if damaged[:56] == whole[:56] and len(damaged) == len(whole) and damaged == whole:
            assert len(open_dataset(path, 10)) == 2
        elif place % len(whole) < 56 or cut or damaged[64:] != whole[64:]:
            with pytest.raises(HeadraceError):
                open_dataset(path, 10)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", SAMPLES, vocab=10)
    with pytest.raises(HeadraceError, match="vocabulary of 10"):
        open_dataset(tmp_path / "a", 11)
    with pytest.raises(HeadraceError, match="can't be opened"):
        open_dataset(tmp_path / "nothing", 10)
    (tmp_path / "zeros").write_bytes(bytes(np.zeros(200, np.uint8)))
    with pytest.raises(HeadraceError, match="no data file"):
        open_dataset(tmp_path / "zeros", 10)
