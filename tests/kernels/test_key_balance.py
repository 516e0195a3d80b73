"""Balanced keys: the weights of attention stay what they were, and 4 bits resolve more of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from chain_tools import MemoryWeights, Piece, Tiny, make_batch, new_pool, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_codes import stored

from headrace.errors import HeadraceError
from headrace.kernels.key_balance import KeyBalance, balance, sample_batch, sample_tokens
from headrace.kernels.native_chain import NativeChain

HEADS, KV_HEADS, WIDTH = 6, 2, 64
SPEC = next(
    dataclasses.replace(spec, heads=HEADS, kv_heads=KV_HEADS, head_dim=WIDTH) for spec in tiny_config(Tiny()).attention_blocks
)
Float32 = npt.NDArray[np.float32]


def uneven(rng: np.random.Generator, rows: int) -> tuple[Float32, Float32]:
    """Queries and keys of channels that differ: keys with means of their own and a few wide channels."""
    mean = rng.normal(0, 3, (KV_HEADS, WIDTH))
    keys = mean + rng.normal(0, 1, (rows, KV_HEADS, WIDTH)) * np.where(np.arange(WIDTH) % 16 == 3, 8, 0.5)
    queries = rng.normal(0, 1, (rows, HEADS, WIDTH)) * np.where(np.arange(WIDTH) % 16 == 3, 0.1, 1)
    return queries.astype(np.float32), keys.astype(np.float32)


def weights(queries: Float32, keys: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Attention weights [kv_heads, rows · group, keys] of every query for every key of its head."""
    grouped = queries.reshape(len(queries), KV_HEADS, -1, WIDTH).astype(np.float64)
    scores = np.einsum("thgd,shd->htgs", grouped, keys.astype(np.float64)) / 8
    scores -= scores.max(axis=-1, keepdims=True)
    return np.asarray(np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True))


def applied(found: KeyBalance, queries: Float32, keys: Float32) -> tuple[Float32, Float32]:
    inverse = np.repeat(found.inverse, HEADS // KV_HEADS, axis=0)
    return queries * inverse, (keys + found.shift) * found.factor


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_weight_of_attention_changes(seed: int) -> None:
    queries, keys = uneven(np.random.default_rng(seed), 40)
    found = balance(SPEC, queries, keys)
    np.testing.assert_allclose(weights(*applied(found, queries, keys)), weights(queries, keys), rtol=1e-4, atol=1e-6)


def test_four_bits_lose_less_of_uneven_keys() -> None:
    queries, keys = uneven(np.random.default_rng(0), 64)
    found = balance(SPEC, queries, keys)
    exact = weights(queries, keys)
    plain = weights(queries, stored(keys, "kv4"))
    balanced_queries, balanced_keys = applied(found, queries, keys)
    balanced = weights(balanced_queries, stored(balanced_keys, "kv4"))
    assert np.abs(balanced - exact).mean() < 0.3 * np.abs(plain - exact).mean()


def test_factors_stand_on_steps_and_shifts_are_short() -> None:
    found = balance(SPEC, *uneven(np.random.default_rng(1), 64))
    steps = np.log2(found.factor.astype(np.float64)) * 16
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-5)
    mantissa, _ = np.frexp(found.shift.astype(np.float64))
    assert (np.rint(mantissa * 2**20) == mantissa * 2**20).all()


@pytest.mark.parametrize("still", [0.0, 2.5])
def test_channels_and_heads_that_never_move_stay_finite(still: float) -> None:
    queries, keys = uneven(np.random.default_rng(2), 32)
    keys[:, 0] = still
    keys[:, 1, 5] = still
    queries[:, :, 7] = 0
    found = balance(SPEC, queries, keys)
    assert all(np.isfinite(part).all() for part in found.parts())
    assert np.abs(np.log2(found.factor)).max() < 40


def test_the_sample_is_spread_over_the_vocabulary() -> None:
    config = dataclasses.replace(tiny_config(Tiny()), vocab=49152, context_length=8192)
    tokens = sample_tokens(config)
    assert len(tokens) == len(sample_tokens(dataclasses.replace(config, vocab=40))) == 512
    assert 0 <= tokens.min() <= tokens.max() < 49152
    octaves = np.bincount(np.log2(np.maximum(tokens, 64) / 64).astype(int))
    assert octaves.min() >= 25
    assert len(sample_tokens(dataclasses.replace(config, context_length=40))) == 40
    assert len(sample_batch(dataclasses.replace(config, context_length=40), 16).page_ids) == 3


@pytest.mark.parametrize("missing", ["k_shift", "k_factor", "q_factor"])
def test_a_balance_is_whole_or_none(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = KeyBalance.vectors
    monkeypatch.setattr(KeyBalance, "vectors", lambda self: {k: v for k, v in vectors(self).items() if k != missing})
    config = tiny_config(Tiny())
    with pytest.raises(HeadraceError, match=r"must have|go with k_shift"):
        NativeChain(config, MemoryWeights(config, 7), 1, kv="kv4")


def test_a_chain_computes_the_same_with_and_without_threads() -> None:
    config = tiny_config(Tiny())
    batch = make_batch([Piece(list(range(20)), 0, [0, 1])])
    found = []
    for threads in (1, 2):
        chain = NativeChain(config, MemoryWeights(config, 7), threads, kv="kv4")
        chain.forward(batch, new_pool(chain, 2))
        found.append(chain.logits(0, len(batch.output_rows)).tobytes())
    assert found[0] == found[1]
