"""Adapters on real weights: as near to merged fp32 weights as the base model is to its own, and bits that no company changes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from adapter_tools import Shape, Uses, pages_of, place_all, random_adapter, with_adapters
from chain_tools import Piece, make_batch
from test_real_chain import BOTH, GEMMA, SMOL, TEXT, opened

from headrace.kernels import _native
from headrace.kernels.formats import runnable_instruction_sets
from headrace.kernels.interface import Bytes, Float32, PlacedAdapter
from headrace.models.adapter import MODULES, Adapter, decode_bf16
from headrace.models.merged_weights import MergedWeights

RANKS = (1, 4, 8, 16, 40, 64)
MIXED = dict(zip(MODULES, (1, 4, 8, 16, 40, 64, 8), strict=True))
ROWS = 48


@lru_cache(maxsize=2)
def adapters_of(name: str) -> list[Adapter]:
    """One that mixes all ranks in all modules, then 31 of each rank in turn, in all modules, in attention, in a few layers."""
    config = opened(name)[0].config
    sets = (MODULES, ("q", "v"), ("q", "k", "v", "o"), ("gate", "up", "down"), ("o", "down"))
    shapes = [Shape(MIXED, size=0.1)]
    for index in range(31):
        rank = RANKS[index % 5] if name == GEMMA else RANKS[index % 6]
        shapes.append(Shape(dict.fromkeys(sets[index % 5] if rank < 40 else ("q", "v"), rank), 1 + index % 3, 0.1))
    return [random_adapter(config, shape, index) for index, shape in enumerate(shapes)]


@lru_cache(maxsize=2)
def pool_of(name: str) -> tuple[Bytes, list[PlacedAdapter]]:
    _, chain, _ = opened(name)
    adapters, size = adapters_of(name), chain.page_layout.page_bytes
    pool = np.full((8 + 32 * 4 + pages_of(adapters, chain.config, size), size), 0xFF, np.uint8)
    return pool, place_all(adapters, chain.config, pool, 8 + 32 * 4)


def tokens_of(name: str, count: int) -> list[int]:
    return opened(name)[2].encode(TEXT, bos=name == GEMMA)[:count]


def alone(name: str, uses: Uses, count: int = ROWS, size: int = 1000) -> Float32:
    _, chain, _ = opened(name)
    (pool, placed), tokens, parts = pool_of(name), tokens_of(name, count), []
    for start in range(0, count, size):
        piece = Piece(tokens[start : start + size], start, range(8))
        chain.forward(with_adapters(make_batch([piece]), [uses], placed), pool)
        parts.append(chain.logits(0, len(piece.tokens))[:, ::7].copy())
    return np.concatenate(parts)


def divergence(exact: Float32, got: Float32) -> tuple[float, float]:
    """Mean KL in nats and share of equal most likely tokens."""
    known, guessed = (
        values - np.log(np.exp(values - values.max(1, keepdims=True)).sum(1, keepdims=True)) for values in (exact, got)
    )
    known, guessed = known - exact.max(1, keepdims=True), guessed - got.max(1, keepdims=True)
    return float((np.exp(known) * (known - guessed)).sum(1).mean()), float((exact.argmax(1) == got.argmax(1)).mean())


@pytest.mark.torch
@pytest.mark.model
def test_as_near_to_merged_weights_as_the_base_to_its_own() -> None:
    """Gemma keeps the same bound; its tables alone would take plain torch half a minute."""
    import torch

    from headrace.kernels.torch_chain import TorchChain

    model, chain, _ = opened(SMOL)
    pool, placed = pool_of(SMOL)
    tokens = tokens_of(SMOL, 110)
    batch = make_batch([Piece(tokens, 0, range(8))])
    uses: Uses = [(0, 1.0), (4, -0.5)]
    chain.forward(with_adapters(batch, [uses], placed), pool)
    got = chain.logits(0, 110).copy()
    chain.forward(batch, pool)
    plain = chain.logits(0, 110).copy()
    # On a busy machine torch's threads wait for each other after every operator.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    merged = TorchChain(model.config, MergedWeights(model.weights, [(adapters_of(SMOL)[i], factor) for i, factor in uses]))
    merged.forward(batch, np.zeros((8, chain.page_layout.page_bytes), np.uint8))
    exact = merged.logits(0, 110)
    torch.set_num_threads(threads)
    loss, same = divergence(exact, got)
    assert loss <= 0.01
    assert same >= 0.97
    assert divergence(exact, plain)[0] > 10 * loss  # the adapters change much


@pytest.mark.parametrize("name", BOTH)
def test_the_same_bits_alone_and_beside_31_others(name: str) -> None:
    _, chain, _ = opened(name)
    pool, placed = pool_of(name)
    tokens = tokens_of(name, ROWS)
    watched: dict[int, Uses] = {0: [(0, 1.0)], 17: [(17, 0.5), (3, -1.0)], 31: []} if name == SMOL else {5: [(5, 2.0), (9, 1.0)]}
    for place, uses in watched.items():
        expected = alone(name, uses)
        assert expected.tobytes() == alone(name, uses, size=13).tobytes()
        everyone: list[Uses] = [[(index, 1.0)] for index in range(32)]
        everyone[place] = uses
        pieces = [Piece(tokens[: 5 + index], 0, range(8 + 4 * index, 12 + 4 * index)) for index in range(32)]
        pieces[place] = Piece(tokens, 0, range(8))
        first = sum(len(piece.tokens) for piece in pieces[:place])
        chain.forward(with_adapters(make_batch(pieces, range(first, first + ROWS)), everyone, placed), pool)
        assert chain.logits(0, ROWS)[:, ::7].tobytes() == expected.tobytes()


@pytest.mark.model
def test_threads_and_instruction_sets_give_the_same_bits() -> None:
    _, chain, _ = opened(SMOL)
    uses: Uses = [(0, 1.0), (5, -0.5)]
    results = set()
    try:
        for isa in runnable_instruction_sets():
            _native.set_isa(isa)
            for threads in (1, 2) if isa != "portable" else (2,):
                chain.set_threads(threads)
                results.add(alone(SMOL, uses, 9, 6).tobytes())
    finally:
        _native.set_isa("auto")
        chain.set_threads(2)
    assert len(results) == 1


@pytest.mark.model
def test_every_adapter_gives_its_own_logits() -> None:
    adapters = adapters_of(SMOL)
    assert {rank for adapter in adapters for layer in adapter.ranks for rank in layer.values()} == set(RANKS)
    assert all(np.any(decode_bf16(part.b)) for adapter in adapters for layer in adapter.layers for part in layer.values())
    assert len({alone(SMOL, [(index, 1.0)], 3).tobytes() for index in range(32)}) == 32
