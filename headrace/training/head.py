"""The head of the model and its loss: only rows whose next token is learnt, logits turned into their gradient at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from headrace.training.arithmetic import Floats, norm, norm_back
from headrace.training.backbone import Backbone
from headrace.training.crew import Crew
from headrace.training.pack import Pack
from headrace.training.units import PART_ROWS, Unit

SLICE = 4096  # tokens of the vocabulary that one unit takes


class Head:
    """Log-probabilities of targets and, on demand, what the loss hands back to the stream."""

    def __init__(self, backbone: Backbone, crew: Crew) -> None:
        self._backbone, self._crew = backbone, crew
        self._gain, self._eps = backbone.final_norm, backbone.config.norm_eps
        self._rows = PART_ROWS * crew.threads
        vocab, hidden = backbone.head.shape
        self._logits: Floats = np.empty((self._rows, vocab), backbone.dtype)
        self._logits.fill(0.0)  # memory that is touched first beside a step would lengthen it
        self._back: Floats = np.empty((self._rows, hidden), backbone.dtype)
        self._normed: Floats = np.empty((self._rows, hidden), backbone.dtype)
        self._slices = [(first, min(first + SLICE, vocab)) for first in range(0, vocab, SLICE)]

    @property
    def bytes(self) -> int:
        """Memory of its buffers."""
        return self._logits.nbytes + self._back.nbytes + self._normed.nbytes

    def score(self, stream: Floats, pack: Pack, out: npt.NDArray[np.float64]) -> Iterator[Unit]:
        """Log-probability of each loss row's target into ``out``."""
        for first in range(0, len(pack.loss_rows), self._rows):
            end = min(first + self._rows, len(pack.loss_rows))
            yield from self._products(stream, pack, first, end)
            yield Unit("loss", self._logit_work(end - first), partial(self._log_probabilities, pack, (first, end), out))

    def grade(
        self, stream: Floats, dx: Floats, pack: Pack, factors: npt.NDArray[np.float64], out: npt.NDArray[np.float64]
    ) -> Iterator[Unit]:
        """As :meth:`score`, and into ``dx`` [T, hidden] the gradient of −Σ factor · log-probability, 0 elsewhere."""
        dx[: len(pack)] = 0.0
        for first in range(0, len(pack.loss_rows), self._rows):
            end = min(first + self._rows, len(pack.loss_rows))
            yield from self._products(stream, pack, first, end)
            yield Unit(
                "loss", 1.5 * self._logit_work(end - first), partial(self._log_probabilities, pack, (first, end), out, factors)
            )
            for slice_ in self._slices:
                yield Unit("head", self._work(first, end, slice_), partial(self._take_back, first, end, slice_))
            yield Unit("head", 0.0, partial(self._join, stream, dx, pack, (first, end)))

    def _products(self, stream: Floats, pack: Pack, first: int, end: int) -> Iterator[Unit]:
        def begin() -> None:
            rows = pack.loss_rows[first:end]
            self._normed[: end - first] = norm(stream[rows], self._gain, self._eps)

        yield Unit("head", 0.0, begin)
        for slice_ in self._slices:
            yield Unit("head", self._work(first, end, slice_), partial(self._multiply, first, end, slice_))

    def _logit_work(self, rows: int) -> float:
        """What looking at all logits of so many rows is like, in products."""
        return float(rows * self._logits.shape[1]) * 50e-9

    def _work(self, first: int, end: int, own: tuple[int, int]) -> float:
        return float((end - first) * (own[1] - own[0]) * self._normed.shape[1]) * 1e-9

    def _parts(self, count: int) -> list[tuple[int, int]]:
        return [(first, min(first + PART_ROWS, count)) for first in range(0, count, PART_ROWS)]

    def _multiply(self, first: int, end: int, own: tuple[int, int]) -> None:
        def work(part: tuple[int, int]) -> None:
            rows = slice(*part)
            self._backbone.head.forward(self._normed[rows], *own, out=self._logits[rows, own[0] : own[1]])

        self._crew.run(work, self._parts(end - first))

    def _log_probabilities(
        self, pack: Pack, rows: tuple[int, int], out: npt.NDArray[np.float64], factors: npt.NDArray[np.float64] | None = None
    ) -> None:
        """With ``factors`` the logits become the gradient of their own loss."""
        first, end = rows

        def work(part: tuple[int, int]) -> None:
            logits = self._logits[part[0] : part[1]]
            places, targets = np.arange(len(logits)), pack.targets[first + part[0] : first + part[1]]
            top = logits.max(axis=-1, keepdims=True)
            logits -= top
            wanted = logits[places, targets].astype(np.float64)
            np.exp(logits, out=logits)
            total = logits.sum(axis=-1, keepdims=True)
            out[first + part[0] : first + part[1]] = wanted - np.log(total[:, 0].astype(np.float64))
            if factors is not None:
                own = factors[first + part[0] : first + part[1]].astype(logits.dtype)
                logits *= own[:, None] / total
                logits[places, targets] -= own
                self._back[part[0] : part[1]] = 0.0

        self._crew.run(work, self._parts(end - first))

    def _take_back(self, first: int, end: int, own: tuple[int, int]) -> None:
        def work(part: tuple[int, int]) -> None:
            rows = slice(*part)
            self._backbone.head.back(self._logits[rows, own[0] : own[1]], *own, add_to=self._back[rows])

        self._crew.run(work, self._parts(end - first))

    def _join(self, stream: Floats, dx: Floats, pack: Pack, span: tuple[int, int]) -> None:
        first, end = span
        rows = pack.loss_rows[first:end]
        dx[rows] = norm_back(stream[rows], self._gain, self._eps, self._back[: end - first])
