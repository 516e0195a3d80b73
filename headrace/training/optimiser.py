"""AdamW ("Decoupled Weight Decay Regularization", Loshchilov and Hutter) on one flat vector, a stretch at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from headrace.training.parameters import Parameters
from headrace.training.settings import TrainingSettings
from headrace.training.units import Unit

STRETCH = 1 << 17  # values of one unit
_SQUARE, _STEP = 1e-7, 5e-7  # work of a value, in 10⁹ multiply-adds


class AdamW:
    """``steps``: updates so far. ``first`` and ``second``: moments, like the parameters' values."""

    def __init__(self, parameters: Parameters, settings: TrainingSettings) -> None:
        self._parameters, self._settings = parameters, settings
        self.first = np.zeros_like(parameters.values)
        self.second = np.zeros_like(parameters.values)
        self.steps = 0
        self.norm = 0.0

    @property
    def bytes(self) -> int:
        """Memory of the moments."""
        return self.first.nbytes + self.second.nbytes

    def update(self, learning_rate: float) -> Iterator[Unit]:
        """One step from the gradient, which is clipped first; :attr:`norm` is its norm before that, and must be looked at: a step
        from a gradient that is not finite changes nothing."""
        stretches = self._stretches()
        squares: list[float] = []
        for stretch in stretches:
            yield Unit("update", _SQUARE * (stretch.stop - stretch.start), partial(self._square, stretch, squares))
        self.norm = math.sqrt(math.fsum(squares))
        if not math.isfinite(self.norm):
            return
        self.steps += 1
        limit = self._settings.clip
        factor = min(1.0, limit / (self.norm + 1e-6)) if limit else 1.0
        for stretch in stretches:
            yield Unit("update", _STEP * (stretch.stop - stretch.start), partial(self._step, stretch, learning_rate, factor))

    def _stretches(self) -> list[slice]:
        size = len(self._parameters.values)
        return [slice(first, min(first + STRETCH, size)) for first in range(0, size, STRETCH)]

    def _square(self, own: slice, to: list[float]) -> None:
        part = self._parameters.gradient[own].astype(np.float64)
        to.append(float(np.einsum("i,i->", part, part)))

    def _step(self, own: slice, learning_rate: float, factor: float) -> None:
        settings, values = self._settings, self._parameters.values[own]
        kind = values.dtype.type
        gradient = self._parameters.gradient[own] * kind(factor)
        first, second = self.first[own], self.second[own]
        first *= kind(settings.beta1)
        first += kind(1.0 - settings.beta1) * gradient
        second *= kind(settings.beta2)
        second += kind(1.0 - settings.beta2) * (gradient * gradient)
        rate = learning_rate / (1.0 - settings.beta1**self.steps)
        spread = np.sqrt(second) * kind(1.0 / math.sqrt(1.0 - settings.beta2**self.steps)) + kind(settings.epsilon)
        if settings.weight_decay:
            values *= kind(1.0 - learning_rate * settings.weight_decay)
        values -= kind(rate) * (first / spread)
        self._parameters.gradient[own] = 0.0
