"""Whole models of integer codes: the same bits however they run, and near the dequantised chain in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chain_tools import Piece, Tiny, make_batch, new_pool, tiny_config
from quantised_models import write_random_model

from headrace.kernels import _native
from headrace.kernels.formats import runnable_instruction_sets
from headrace.kernels.interface import ChainRunner, Float32
from headrace.kernels.native_chain import NativeChain
from headrace.models.config import ModelConfig
from headrace.models.folder_model import load_folder
from headrace.models.weights import WeightSource

FORMS = [(group, bits) for group in (0, 32, 64, 128) for bits in (8, 16)]
TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 203, 50)]


@pytest.fixture(params=FORMS, ids=[f"group {group} rows of {bits} bits" for group, bits in FORMS])
def form(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def model(form: tuple[int, int], tmp_path: Path) -> tuple[ModelConfig, WeightSource]:
    import dataclasses

    config = dataclasses.replace(tiny_config(Tiny()), family="llama")
    return load_folder(write_random_model(tmp_path, config, *form))


def logits(chain: ChainRunner, step: int, pages: list[int]) -> Float32:
    """Of every token of the prompt, computed in steps of that many rows."""
    pool, parts = new_pool(chain, 10), []
    for start in range(0, len(TOKENS), step):
        chain.forward(make_batch([Piece(TOKENS[start : start + step], start, pages)]), pool)
        parts.append(chain.logits(0, len(TOKENS[start : start + step])).copy())
    return np.concatenate(parts)


def test_steps_threads_and_instruction_sets_change_nothing(model: tuple[ModelConfig, WeightSource]) -> None:
    chain = NativeChain(*model, 1)
    expected = logits(chain, 50, [0, 1, 2, 3])
    assert np.isfinite(expected).all()
    assert np.abs(expected).max() > 0.1
    for isa in runnable_instruction_sets():
        _native.set_isa(isa)
        try:
            assert np.array_equal(logits(chain, 17, [5, 4, 9, 1]), expected), isa
        finally:
            _native.set_isa("auto")
    chain.set_threads(2)
    for step in (1, 7, 50):
        assert np.array_equal(logits(chain, step, [0, 1, 2, 3]), expected), f"steps of {step}"


@pytest.mark.torch
def test_near_the_dequantised_chain(model: tuple[ModelConfig, WeightSource], form: tuple[int, int]) -> None:
    from headrace.kernels.torch_chain import TorchChain

    got = logits(NativeChain(*model, 2), 50, [0, 1, 2, 3])
    torch_chain = TorchChain(*model)
    torch_chain.forward(make_batch([Piece(TOKENS, 0, [0, 1, 2, 3])]), np.zeros((10, torch_chain.page_layout.page_bytes), np.uint8))
    expected = torch_chain.logits(0, len(TOKENS))
    assert np.abs(got - expected).mean() < (0.006 if form[1] == 16 else 0.05) * np.abs(expected).std()
