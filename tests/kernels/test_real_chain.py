"""The native chain on real weights: sense, agreement with the slow oracle, and bits that no schedule changes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pytest
from chain_tools import Piece, make_batch, new_pool

from headrace.kernels.native_chain import NativeChain
from headrace.models.catalog import OpenModel, find_model, open_model
from headrace.text.gguf_tokenizer import tokenizer_from_gguf
from headrace.text.tokenizer import Tokenizer

SMOL, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
BOTH = [pytest.param(SMOL, marks=pytest.mark.model), pytest.param(GEMMA, marks=pytest.mark.gemma)]
TEXT = (
    "A river is a natural stream of fresh water that flows on land, or inside caves, towards another body of water at a lower "
    "elevation, such as an ocean, a lake, or another river. Rivers are important in the water cycle, and they shape valleys. "
) * 4


@lru_cache(maxsize=2)
def opened(name: str) -> tuple[OpenModel, NativeChain, Tokenizer]:
    model = open_model(find_model(name))
    assert isinstance(model.tokenizer_source, Mapping)
    return model, NativeChain(model.config, model.weights, 2), tokenizer_from_gguf(model.tokenizer_source)


@pytest.mark.parametrize("name", BOTH)
def test_greedy_text_makes_sense(name: str) -> None:
    _, chain, tokenizer = opened(name)
    tokens = tokenizer.encode("The capital of France is", bos=name == GEMMA)
    start = len(tokens)
    pool = new_pool(chain, 4)
    chain.forward(make_batch([Piece(tokens, 0, range(4))], [start - 1]), pool)
    for position in range(start, start + 12):
        tokens.append(int(chain.greedy(0, 1)[0]))
        chain.forward(make_batch([Piece(tokens[-1:], position, range(4))]), pool)
    assert ("Paris" if name == SMOL else "capital of") in tokenizer.decode(tokens[start:])


@pytest.mark.parametrize("name", BOTH)
def test_chunks_threads_and_neighbours_change_no_bit(name: str) -> None:
    _, chain, tokenizer = opened(name)
    tokens = tokenizer.encode(TEXT, bos=name == GEMMA)[:80]
    pages = list(range(3, 8))
    results = []
    for size, threads in ((80, 2), (32, 1), (7, 2), (1, 1)):
        chain.set_threads(threads)
        pool, parts = new_pool(chain, 32), []
        for start in range(0, len(tokens), size):
            neighbours = [Piece(tokens[5:12], 0, [20]), Piece(tokens[:1], 0, [21])][: start % 3]
            piece = Piece(tokens[start : start + size], start, pages)
            rows = len(piece.tokens)
            chain.forward(make_batch([piece, *neighbours], range(rows)), pool)
            parts.append(chain.logits(0, rows)[:, ::7].copy())
        results.append(np.concatenate(parts).tobytes() + pool[pages].tobytes())
    assert len(set(results)) == 1


@pytest.mark.torch
@pytest.mark.model
def test_agrees_with_the_torch_chain() -> None:
    from headrace.kernels.torch_chain import TorchChain

    model, chain, tokenizer = opened(SMOL)
    oracle = TorchChain(model.config, model.weights)
    tokens = tokenizer.encode(TEXT)[:120]
    batch = make_batch([Piece(tokens, 0, range(8))])
    chain.forward(batch, new_pool(chain, 8))
    oracle.forward(batch, np.zeros((8, chain.page_layout.page_bytes), np.uint8))
    got, exact = chain.logits(0, 120), oracle.logits(0, 120)
    assert (got.argmax(1) == exact.argmax(1)).mean() >= 0.98
    assert np.abs(got - exact).mean() < 0.01 * exact.std()
