"""Gradients in windows against autograd on the whole model: their error, what both keep in memory, and the losses they lead to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.experiments._flexllm_pack import text_pack
from headrace.evaluation.training_oracle import TorchOracle
from headrace.models.catalog import OpenModel
from headrace.training.backbone import Backbone
from headrace.training.crew import Crew, single_threaded_products
from headrace.training.optimiser import AdamW
from headrace.training.pack import Pack
from headrace.training.parameters import Parameters
from headrace.training.passes import Passes, Room
from headrace.training.settings import TrainingSettings
from headrace.training.units import Unit

_THREADS = 2
Doubles = npt.NDArray[np.float64]


def gradients(conditions: Conditions, model: OpenModel, backbone: Backbone, ids: list[int]) -> list[Claim]:
    """The real model in fp32, and its first two layers in float64, against autograd in float64.

    Autograd in fp32 is no reference for a gradient in fp32: its own error is the larger one, and is told beside.
    """
    cases = {17: (7,)} if conditions.quick else {17: (1, 7), 130: (7, 64), 256: (64, 256)}
    exact, worst, theirs = Backbone(model.config, model.weights, np.float64), 0.0, 0.0
    for done, (tokens, windows) in enumerate(cases.items()):
        conditions.report("gradients", done, len(cases))
        pack = text_pack(ids, tokens)
        reference = _autograd(exact, pack)
        theirs = max(theirs, _distance(_autograd(backbone, pack), reference))
        worst = max(worst, *(_distance(_windowed(backbone, pack, window), reference) for window in windows))
    cut = Backbone(replace(model.config, blocks=model.config.blocks[:4]), model.weights, np.float64)
    pack = text_pack(ids, 40, 2)
    wanted = _autograd(cut, pack)
    small = max(_distance(_windowed(cut, pack, window), wanted) for window in (1, 7, 64))
    told = ", ".join(f"{tokens} tokens by {window}" for tokens, windows in cases.items() for window in windows)
    return [
        Claim("gradient", "gradient in fp32 windows against autograd in float64, all projections", "<=", 1e-5, worst, "rel.",
              f"{told}; autograd in fp32: {theirs:.1e}"),
        Claim("gradient_double", "the same in float64, two layers and two packed samples", "<=", 1e-10, small, "rel."),
    ]  # fmt: skip


def losses(conditions: Conditions, backbone: Backbone, ids: list[int]) -> list[Claim]:
    """AdamW steps on one text, here and by torch."""
    steps = 2 if conditions.quick else 100
    pack = text_pack(ids, 48)
    settings = TrainingSettings(max_tokens=len(pack), learning_rate=1e-3, clip=0.0)
    parameters = Parameters(backbone.config, settings)
    oracle, optimiser = TorchOracle(backbone, parameters), AdamW(parameters, settings)
    other = torch.optim.AdamW([leaf for pair in oracle.leaves.values() for leaf in pair], lr=1e-3, weight_decay=0.0)
    crew, apart, last = Crew(_THREADS), 0.0, (0.0, 0.0)
    passes = Passes(backbone, parameters, crew, Room(len(pack)))
    for step in range(steps):
        conditions.report("losses", step, steps)
        with single_threaded_products():
            own = _loss(passes, pack)
            _run(optimiser.update(1e-3))
        other.zero_grad()
        theirs = -oracle.log_probabilities(pack).mean()
        _backward(theirs)
        other.step()
        last = (own, theirs.item())
        apart = max(apart, abs(own - theirs.item()) / abs(theirs.item()))
    crew.close()
    note = f"{steps} steps, the last at {last[0]:.4f} and {last[1]:.4f}"
    return [Claim("losses", "losses of AdamW steps, largest difference from torch's", "<=", 1e-4, apart, "rel.", note)]


def memory(conditions: Conditions, model: OpenModel, ids: list[int]) -> list[Claim]:
    """What the backward pass keeps, counted where it is made: our buffers, and the tensors that autograd saves."""
    conditions.report("memory", 0, 1)
    tokens = 1024
    pack, backbone = text_pack(ids, tokens), Backbone(model.config, model.weights, np.float32)
    parameters = Parameters(backbone.config, TrainingSettings(max_tokens=tokens))
    saved: dict[int, int] = {}
    frozen = {id_ for block in backbone.blocks for id_ in _addresses(block)} | {backbone.head.values().ctypes.data}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    oracle = TorchOracle(backbone, parameters)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = oracle.log_probabilities(pack)
    theirs = sum(saved.values())
    del kept
    claims = []
    crew = Crew(1)
    for claim, keep_both, asked in (("memory", False, 0.15), ("memory_gates", True, 0.30)):
        passes = Passes(backbone, parameters, crew, Room(tokens, keep_both))
        note = f"{passes.saved.bytes / 2**20:.0f} of {theirs / 2**20:.0f} MiB at {tokens} tokens"
        what = "bytes kept for the backward pass / those that autograd saves, gates " + ("kept" if keep_both else "computed again")
        claims.append(Claim(claim, what, "<=", asked, passes.saved.bytes / theirs, "x", note))
        del passes
    crew.close()
    return claims


def _random_adapter(backbone: Backbone, tokens: int) -> Parameters:
    """The same numbers in every float type."""
    parameters = Parameters(backbone.config, TrainingSettings(rank=8, max_tokens=max(8, tokens)), backbone.dtype)
    draws = np.random.default_rng(1)
    for _, _, bypass in parameters.bypasses():
        bypass.a[:] = bypass.a.astype(np.float32)
        bypass.b[:] = (0.02 * draws.standard_normal(bypass.b.shape)).astype(np.float32)
    return parameters


def _windowed(backbone: Backbone, pack: Pack, window: int) -> Doubles:
    """The gradient of the mean loss, as one vector."""
    parameters = _random_adapter(backbone, len(pack))
    crew = Crew(_THREADS)
    passes = Passes(backbone, parameters, crew, Room(len(pack), part_rows=window))
    with single_threaded_products():
        _loss(passes, pack)
    crew.close()
    return parameters.gradient.astype(np.float64)


def _autograd(backbone: Backbone, pack: Pack) -> Doubles:
    parameters = _random_adapter(backbone, len(pack))
    oracle = TorchOracle(backbone, parameters)
    _backward(-oracle.log_probabilities(pack).mean())
    found = [one.numpy().ravel() for layer, name, _ in parameters.bypasses() for one in oracle.gradient(layer, name)]
    return np.concatenate(found).astype(np.float64)


def _distance(own: Doubles, wanted: Doubles) -> float:
    """Length of the difference, relative to the length of what is wanted."""
    apart = float(np.linalg.norm(own - wanted) / np.linalg.norm(wanted))
    return apart if math.isfinite(apart) else math.inf


def _loss(passes: Passes, pack: Pack) -> float:
    """Forward and backward; the mean negative log-likelihood."""
    count = len(pack.loss_rows)
    factors, scores = np.full(count, 1.0 / count), np.zeros(count)
    _run(passes.forward(pack))
    _run(passes.backward(pack, factors, scores))
    return float(-scores.mean())


def _run(units: Iterable[Unit]) -> None:
    for unit in units:
        unit.run()


def _backward(loss: Any) -> None:
    loss.backward()


def _addresses(block: Any) -> list[int]:
    names = ("qkv", "o", "gate_up", "down")
    return [block.norm.ctypes.data, *(getattr(block, name).values().ctypes.data for name in names if hasattr(block, name))]
