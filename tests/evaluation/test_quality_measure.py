"""The quality measure: right on tables whose answer is known, and able to tell that something is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.evaluation.quality import (
    Text,
    compare_chains,
    compare_many,
    even_windows,
    log_softmax,
    real_text,
    text_windows,
    window_logits,
)
from headrace.kernels.interface import Bytes, Float32, Int32, PageLayout, StepBatch
from headrace.models.config import ModelConfig

VOCAB = 6


class TableRunner:
    """A runner that looks its logits up by the newest token; it keeps the steps that it was asked for."""

    def __init__(self, table: Float32) -> None:
        self.config = ModelConfig("table", 4, VOCAB, 4096, 1e-5, ())
        self.page_layout = PageLayout(16, 8)
        self.steps: list[tuple[int, int]] = []
        self._table, self._kept = table, np.empty((0, VOCAB), np.float32)

    def forward(self, batch: StepBatch, pool: Bytes) -> None:
        assert len(pool) * 16 > batch.positions.max()
        self.steps.append((int(batch.positions[0]), len(batch.positions)))
        self._kept = self._table[batch.token_ids[batch.output_rows]]

    def hidden(self) -> Float32:
        return self._kept

    def logits(self, first: int, count: int) -> Float32:
        return self._kept[first : first + count]

    def greedy(self, first: int, count: int) -> Int32:
        return np.asarray(self.logits(first, count).argmax(axis=-1), dtype=np.int32)


def tables(seed: int, noise: float) -> tuple[Float32, Float32]:
    rng = np.random.default_rng(seed)
    known = rng.standard_normal((VOCAB, VOCAB), dtype=np.float32) * 3
    return known, known + rng.standard_normal((VOCAB, VOCAB), dtype=np.float32) * np.float32(noise)


@given(st.integers(0, 2**32), st.floats(0.0, 3.0), st.integers(2, 40), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_agrees_with_the_definition(seed: int, noise: float, length: int, count: int) -> None:
    known, guessed = tables(seed, noise)
    windows = np.random.default_rng(seed).integers(0, VOCAB, (count, length)).astype(np.int32)
    quality = compare_chains(TableRunner(known), TableRunner(guessed), windows)
    agreed, divergence, loss = 0, 0.0, [0.0, 0.0]
    for window in windows.tolist():
        for position, token in enumerate(window):
            p, q = (np.exp(row.astype(float)) / np.exp(row.astype(float)).sum() for row in (known[token], guessed[token]))
            agreed += int(p.argmax() == q.argmax())
            divergence += float((p * np.log(p / q)).sum())
            if position + 1 < length:
                loss[0] -= math.log(p[window[position + 1]])
                loss[1] -= math.log(q[window[position + 1]])
    assert quality.positions == windows.size
    assert quality.top1_agreement == pytest.approx(agreed / windows.size)
    assert quality.mean_kl == pytest.approx(divergence / windows.size, rel=1e-3, abs=1e-5)
    assert quality.reference_perplexity == pytest.approx(math.exp(loss[0] / count / (length - 1)), rel=1e-4)
    assert quality.candidate_perplexity == pytest.approx(math.exp(loss[1] / count / (length - 1)), rel=1e-4)


def test_nothing_is_lost_against_oneself() -> None:
    known, other = tables(1, 2.0)
    windows = np.arange(60, dtype=np.int32).reshape(2, 30) % VOCAB
    same = compare_chains(TableRunner(known), TableRunner(known.copy()), windows)
    assert (same.top1_agreement, same.mean_kl, same.perplexity_ratio) == (1.0, 0.0, 1.0)
    worse = compare_chains(TableRunner(known), TableRunner(other), windows)
    assert worse.top1_agreement < 1.0
    assert worse.mean_kl > 0.1
    assert worse.p99_kl >= worse.mean_kl


def test_a_window_runs_in_steps_behind_its_first_token() -> None:
    known, _ = tables(2, 0.0)
    runner, window = TableRunner(known), np.asarray([1, 2, 3, 4, 5] * 4, dtype=np.int32)
    pieces = [piece.copy() for piece in window_logits(runner, window, step_tokens=8, first_token=0)]
    assert np.array_equal(np.concatenate(pieces), known[window])
    assert runner.steps == [(0, 8), (8, 8), (16, 5)]


def test_probabilities_sum_to_one_and_survive_large_logits() -> None:
    logits = np.asarray([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], dtype=np.float32)
    assert np.allclose(np.exp(log_softmax(logits)).sum(axis=-1), 1.0)
    assert np.isfinite(log_softmax(logits)).all()


def test_windows_are_consecutive_and_seeded() -> None:
    windows = text_windows(list(range(1000)), length=20, count=30, seed=4)
    assert windows.shape == (30, 20)
    assert windows.dtype == np.int32
    assert (np.diff(windows, axis=1) == 1).all()
    assert np.array_equal(windows, text_windows(list(range(1000)), 20, 30, seed=4))
    assert not np.array_equal(windows, text_windows(list(range(1000)), 20, 30, seed=5))
    with pytest.raises(HeadraceError, match="too few for a window"):
        text_windows([1, 2, 3], length=3, count=1)


def test_the_text_is_real_and_long_enough() -> None:
    text = real_text()
    assert len(text) > 200_000
    assert text.count(" the ") > 2_000


def test_even_windows_share_no_token() -> None:
    windows = even_windows(list(range(1000)), length=30, count=7)
    assert windows.shape == (7, 30)
    assert len(np.unique(windows)) == 210
    assert windows[0, 0] == 0
    with pytest.raises(HeadraceError, match="too few for 34 windows"):
        even_windows(list(range(1000)), length=30, count=34)


@pytest.mark.parametrize("first_token", [None, 3])
@pytest.mark.parametrize("every", [2, 3, 300])
def test_scoring_some_positions_is_scoring_them_among_all(every: int, first_token: int | None) -> None:
    known, guessed = tables(3, 1.0)
    window = np.random.default_rng(3).integers(0, VOCAB, 600).astype(np.int32)
    runner = TableRunner(known)
    rows = np.concatenate([piece.copy() for piece in window_logits(runner, window, first_token=first_token, every=every)])
    assert np.array_equal(rows, known[window[::every]])
    candidates = {"same": TableRunner(known), "other": TableRunner(guessed)}
    found = compare_many(TableRunner(known), candidates, Text(window[None], first_token, every))
    assert found["same"].perplexity_ratio == 1.0
    assert found["same"].mean_kl == 0.0
    assert found["other"].positions == -(-600 // every)
    at = np.arange(0, 599, every)
    loss = [-log_softmax(table)[window[at], window[at + 1]].mean(dtype=np.float64) for table in (known, guessed)]
    assert math.isclose(found["other"].reference_perplexity, math.exp(loss[0]), rel_tol=1e-5)
    assert math.isclose(found["other"].candidate_perplexity, math.exp(loss[1]), rel_tol=1e-5)
