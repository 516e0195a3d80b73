"""Gradients of the windowed passes against autograd: the test that protects fine-tuning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from training_tools import RandomWeights, random_sample, randomise, run_all, tiny_config

from headrace.training.backbone import Backbone
from headrace.training.crew import Crew
from headrace.training.pack import Pack, make_pack
from headrace.training.parameters import Parameters
from headrace.training.passes import Passes, Room
from headrace.training.settings import TrainingSettings

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma": {"qk_norm": True, "post_norm": True, "window": 11},
    "qwen": {"qkv_bias": True},
}


def one_pack() -> Pack:
    return make_pack([random_sample(length, length) for length in (37, 9, 2)], [0, 1, 2], 64)


def gradients(
    kind: str, pack: Pack, room: Room, settings: TrainingSettings, dtype: Any = np.float64, threads: int = 1
) -> tuple[Backbone, Parameters, np.ndarray[Any, Any]]:
    config = tiny_config(**KINDS[kind])
    backbone = Backbone(config, RandomWeights(config), dtype)
    parameters = Parameters(config, settings, backbone.dtype)
    randomise(parameters)
    crew = Crew(threads)
    passes = Passes(backbone, parameters, crew, room)
    out = np.zeros(len(pack.loss_rows))
    run_all(passes.forward(pack))
    run_all(passes.backward(pack, pack.weights.astype(np.float64), out))
    crew.close()
    return backbone, parameters, out


@pytest.mark.torch
@pytest.mark.parametrize("part_rows", [1, 7, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_give_the_gradients_of_autograd(kind: str, part_rows: int) -> None:
    import torch

    from headrace.evaluation.training_oracle import TorchOracle

    pack, settings = one_pack(), TrainingSettings(rank=3, ranks={"q": 5, "down": 2}, max_tokens=64)
    backbone, parameters, out = gradients(kind, pack, Room(64, part_rows=part_rows), settings)
    oracle = TorchOracle(backbone, parameters)
    scores = oracle.log_probabilities(pack)
    (-(scores * torch.from_numpy(pack.weights.astype(np.float64))).sum()).backward()
    np.testing.assert_allclose(out, scores.detach().numpy(), rtol=1e-10)
    for layer, name, bypass in parameters.bypasses():
        for own, other in zip((bypass.da, bypass.db), oracle.gradient(layer, name), strict=True):
            error = np.abs(own - other.numpy()).max() / np.abs(other.numpy()).max()
            assert error <= 1e-10, f"layer {layer} {name}: {error}"


@pytest.mark.torch
@pytest.mark.parametrize("targets", [("o",), ("down",), ("k",), ("gate", "v")])
def test_pruned_gradients_are_the_same(targets: tuple[str, ...]) -> None:
    """What is left out for want of anything trained below must not be missed."""
    import torch

    from headrace.evaluation.training_oracle import TorchOracle

    pack = one_pack()
    backbone, parameters, _ = gradients(
        "llama", pack, Room(64, part_rows=8), TrainingSettings(rank=3, targets=targets, max_tokens=64)
    )
    oracle = TorchOracle(backbone, parameters)
    (-(oracle.log_probabilities(pack) * torch.from_numpy(pack.weights.astype(np.float64))).sum()).backward()
    for layer, name, bypass in parameters.bypasses():
        for own, other in zip((bypass.da, bypass.db), oracle.gradient(layer, name), strict=True):
            np.testing.assert_allclose(own, other.numpy(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_give_the_gradients_of_plain_ones(kind: str) -> None:
    settings, pack = TrainingSettings(rank=4, max_tokens=64), one_pack()
    _, exact, scores = gradients(kind, pack, Room(64), settings)
    _, plain, _ = gradients(kind, pack, Room(64), settings, np.float32)
    _, packed, found = gradients(kind, pack, Room(64), settings, None)
    apart = [np.abs(one.gradient - exact.gradient).max() for one in (packed, plain)]
    assert apart[0] <= 3 * apart[1], "as near to float64 as numpy's products in fp32"
    np.testing.assert_allclose(found, scores, rtol=1e-4)


def test_threads_and_kept_gates_change_no_bit() -> None:
    settings, pack = TrainingSettings(rank=4, max_tokens=64), one_pack()
    _, alone, out = gradients("gemma", pack, Room(64, part_rows=16), settings, None)
    for threads, keep in ((2, True), (1, False), (3, False)):
        _, other, again = gradients("gemma", pack, Room(64, keep, 16), settings, None, threads)
        assert np.array_equal(alone.gradient, other.gradient)
        assert np.array_equal(out, again)


def test_packed_samples_do_not_meet() -> None:
    """A sample's scores are those that it has alone."""
    settings = TrainingSettings(rank=4, max_tokens=64)
    _, _, together = gradients("llama", one_pack(), Room(64), settings)
    first = make_pack([random_sample(37, 37)], [0], 64)
    _, _, alone = gradients("llama", first, Room(64), settings)
    np.testing.assert_allclose(together[: len(alone)], alone, rtol=1e-12)
