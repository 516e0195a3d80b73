"""What is trained: all matrices of one adapter in one flat vector, and their gradient in another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.models.adapter import MODULES, Adapter, LowRank, module_sides, round_bf16
from headrace.models.config import ModelConfig
from headrace.training.arithmetic import Floats
from headrace.training.settings import TrainingSettings


@dataclass(frozen=True, slots=True, eq=False)
class Bypass:
    """One adapted module: ``y += scale · (x·Aᵀ)·Bᵀ``. ``a`` [rank, inputs] and ``b`` [outputs, rank] are views of the vector of
    values, ``da`` and ``db`` of the gradient."""

    a: Floats
    b: Floats
    da: Floats
    db: Floats
    scale: float

    def add(self, x: Floats, y: Floats) -> None:
        """y [T, outputs] += what the bypass makes of x [T, inputs]."""
        y += self._inner(x) @ self.b.T

    def back(self, x: Floats, dy: Floats, dx: Floats | None) -> tuple[Floats, Floats]:
        """The rows' part of the gradient of ``a`` and ``b``; ``dx`` += what goes back to ``x``."""
        back = dy @ self.b
        back *= back.dtype.type(self.scale)
        if dx is not None:
            dx += back @ self.a
        return back.T @ x, dy.T @ self._inner(x)

    def _inner(self, x: Floats) -> Floats:
        """scale · x·Aᵀ: the scale where it has least to multiply."""
        inner = x @ self.a.T
        inner *= inner.dtype.type(self.scale)
        return inner


class Parameters:
    """An adapter's numbers: ``values``, ``gradient`` and views of them by layer and module.

    ``A`` begins as PEFT's does (uniform within 1/√inputs), from the settings' seed; ``B`` is zero, so that the adapter
    begins as none.
    """

    def __init__(self, config: ModelConfig, settings: TrainingSettings, dtype: npt.DTypeLike = np.float32) -> None:
        sides = module_sides(config)
        modules = [name for name in MODULES if name in settings.targets]
        shapes = [(layer, name, settings.rank_of(name), *own[name]) for layer, own in enumerate(sides) for name in modules]
        size = sum(rank * (inputs + outputs) for _, _, rank, inputs, outputs in shapes)
        self.values: Floats = np.zeros(size, dtype)
        self.gradient: Floats = np.zeros(size, dtype)
        self._layers: list[dict[str, Bypass]] = [{} for _ in sides]
        draws, place = np.random.Generator(np.random.PCG64(settings.seed)), 0
        for layer, name, rank, inputs, outputs in shapes:
            parts = []
            for shape in ((rank, inputs), (outputs, rank)):
                count = shape[0] * shape[1]
                parts.append([vector[place : place + count].reshape(shape) for vector in (self.values, self.gradient)])
                place += count
            (a, da), (b, db) = parts
            a[:] = draws.uniform(-1.0, 1.0, a.shape) / np.sqrt(inputs)
            self._layers[layer][name] = Bypass(a, b, da, db, settings.scale_of(name))

    def layer(self, layer: int) -> dict[str, Bypass]:
        """The adapted modules of one layer."""
        return self._layers[layer]

    def bypasses(self) -> Iterator[tuple[int, str, Bypass]]:
        """All of them, in the order of the vector."""
        for layer, own in enumerate(self._layers):
            for name, bypass in own.items():
                yield layer, name, bypass

    def adapter(self, base_model: str = "") -> Adapter:
        """The adapter as it is served and saved: rounded to bfloat16."""
        layers = tuple(
            {name: LowRank(round_bf16(one.a), round_bf16(one.b), float(np.float32(one.scale))) for name, one in own.items()}
            for own in self._layers
        )
        return Adapter(layers, base_model)
