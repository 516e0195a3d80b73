"""One fine-tuning job as a sequence of units: who runs them, and when, changes nothing about its result."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.training.backbone import Backbone
from headrace.training.checkpoint import Progress, checkpoints, load_checkpoint, prune, save_checkpoint
from headrace.training.crew import Crew
from headrace.training.dataset_file import Dataset
from headrace.training.loss import document_sums, likelihood_factors, preference
from headrace.training.optimiser import AdamW
from headrace.training.order import SampleOrder
from headrace.training.pack import Pack
from headrace.training.parameters import Parameters
from headrace.training.passes import Passes, Room
from headrace.training.saved import Make
from headrace.training.settings import TrainingSettings
from headrace.training.units import Unit

logger = logging.getLogger("headrace.training.job")


@dataclass(frozen=True, slots=True)
class Work:
    """What a job is to do. ``folder``: of its checkpoints. ``keep_both``, ``make``: see :class:`~headrace.training.passes.Room`."""

    settings: TrainingSettings
    data: Dataset
    validation: Dataset | None
    folder: Path
    base_model: str = ""
    keep_both: bool = True
    make: Make = np.empty


@dataclass(frozen=True, slots=True)
class Stepped:
    """An optimiser step is over. ``step`` counts from 1, ``tokens`` all that was learnt from so far, in all epochs."""

    step: int
    steps: int
    epoch: float
    loss: float
    tokens: int
    learning_rate: float
    norm: float


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint has come to the disk."""

    step: int
    folder: Path
    loss: float
    validation_loss: float | None


class Job:
    """``units()`` is the whole job from its last checkpoint on; run each unit before asking for the next.

    ``events`` grows meanwhile. Raises ``invalid_value`` for data and settings that don't fit, and for a folder of another job;
    units and their iterator raise :class:`HeadraceError` when a loss is not finite, or OSError when a checkpoint can't be written.
    """

    def __init__(self, work: Work, backbone: Backbone, crew: Crew, files: Executor) -> None:
        self.work = work
        self.order = SampleOrder(work.data, work.settings)
        self._validation = SampleOrder(work.validation, work.settings) if work.validation is not None else None
        self.parameters = Parameters(backbone.config, work.settings)
        self.optimiser = AdamW(self.parameters, work.settings)
        self._files = files
        self.events: list[Stepped | Saved] = []
        self.writing: Future[Path] | None = None
        self.spared: set[Path] = set()
        self._reference: dict[int, tuple[float, float]] = {}
        self.progress = Progress(0, 0, 0.0, None, work.base_model, len(work.data))
        self._resume()
        self.passes = Passes(backbone, self.parameters, crew, Room(self.order.room, work.keep_both, make=work.make))

    @property
    def bytes(self) -> int:
        """Memory that the job takes beside the backbone."""
        return self.passes.bytes + self.optimiser.bytes + self.parameters.values.nbytes + self.parameters.gradient.nbytes

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest one."""
        found = checkpoints(self.work.folder)
        return found[-1][1] if found else None

    def units(self) -> Iterator[Unit]:
        """Everything that is left to do. While :attr:`writing` is not done there is nothing to run."""
        while self.progress.step < self.order.steps:
            yield from self._step()
            if self._is_due(self.progress.step):
                if self._validation is not None:
                    yield from self._validate(self._validation)
                yield Unit("file", 0.0, self.save)

    def saved(self) -> None:
        """Take note of a checkpoint that has been written; raises what went wrong."""
        if self.writing is None:
            return
        future, self.writing = self.writing, None
        path = future.result()
        self.events.append(Saved(self.progress.step, path, self.progress.loss, self.progress.validation_loss))
        prune(self.work.folder, self.work.settings.checkpoints_kept, self.spared)

    def _resume(self) -> None:
        found = checkpoints(self.work.folder)
        if not found:
            return
        progress = load_checkpoint(found[-1][1], self.parameters, self.optimiser, self.work.settings)
        if progress.samples != len(self.work.data) or progress.base_model != self.work.base_model:
            message = f"{found[-1][1].name} was trained on {progress.samples} rows and {progress.base_model[:64]!r}"
            raise HeadraceError("invalid_value", message, param="folder")
        self.progress = progress

    def _is_due(self, step: int) -> bool:
        every = self.work.settings.checkpoint_every or self.order.steps_of_epoch
        return step % every == 0 or step == self.order.steps

    def save(self) -> None:
        """Begin to write a checkpoint; :attr:`writing` says when it is there, :meth:`saved` must be called then."""
        self.writing = self._files.submit(
            save_checkpoint, self.work.folder, self.parameters, self.optimiser, self.work.settings, self.progress
        )

    def _step(self) -> Iterator[Unit]:
        self.parameters.gradient[:] = 0.0
        packs, step, tokens = self.order.batch(self.progress.step), self.progress.step, 0
        losses: list[float] = []
        samples = sum(len(set(pack.samples)) for pack in packs)
        total = sum(float(pack.weights.sum(dtype=np.float64)) for pack in packs)
        for pack in packs:
            tokens += len(pack)
            if self.work.settings.method == "dpo":
                yield from self._learn_preference(pack, samples, losses)
            else:
                yield from self._learn(pack, total, losses)
        rate = self.work.settings.learning_rate_at(step, self.order.steps)
        yield from self.optimiser.update(rate)
        norm = self.optimiser.norm
        if not np.isfinite(norm):
            raise _fault(f"step {step + 1}: the gradient is not finite")
        progress = self.progress
        self.progress = Progress(
            step + 1, progress.tokens + tokens, sum(losses), progress.validation_loss, progress.base_model, progress.samples
        )
        epoch = (step + 1) / self.order.steps_of_epoch
        self.events.append(Stepped(step + 1, self.order.steps, epoch, sum(losses), self.progress.tokens, rate, norm))

    def _learn(self, pack: Pack, total: float, losses: list[float]) -> Iterator[Unit]:
        factors, scores = likelihood_factors(pack, total), np.zeros(len(pack.loss_rows))
        yield from self.passes.forward(pack)
        yield from self.passes.backward(pack, factors, scores)
        self._check(pack, scores)
        losses.append(-float(factors @ scores))

    def _learn_preference(self, pack: Pack, pairs: int, losses: list[float]) -> Iterator[Unit]:
        yield from self._refer(pack)
        scores = np.zeros(len(pack.loss_rows))
        yield from self.passes.forward(pack)
        yield from self.passes.score(pack, scores)
        self._check(pack, scores)
        loss, factors = preference(pack, scores, self._known(pack), self.work.settings.beta, pairs)
        losses.append(loss)
        yield from self.passes.backward(pack, factors, scores)

    def _refer(self, pack: Pack) -> Iterator[Unit]:
        """What the model says without the adapter, once a pair."""
        if all(sample in self._reference for sample in pack.samples):
            return
        scores = np.zeros(len(pack.loss_rows))
        yield from self.passes.forward(pack, adapted=False)
        yield from self.passes.score(pack, scores)
        self._check(pack, scores)
        sums = document_sums(pack, scores)
        for number, sample in enumerate(pack.samples[::2]):
            self._reference.setdefault(sample, (float(sums[2 * number]), float(sums[2 * number + 1])))

    def _known(self, pack: Pack) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([one for sample in pack.samples[::2] for one in self._reference[sample]])

    def _validate(self, order: SampleOrder) -> Iterator[Unit]:
        """The loss on the validation file, with the adapter as it is now."""
        total, weight = 0.0, 0.0
        kept, self._reference = self._reference, {}
        for group in order.everything():
            pack = order.pack(group)
            if self.work.settings.method == "dpo":
                yield from self._refer(pack)
            scores = np.zeros(len(pack.loss_rows))
            yield from self.passes.forward(pack)
            yield from self.passes.score(pack, scores)
            if self.work.settings.method == "dpo":
                total += preference(pack, scores, self._known(pack), self.work.settings.beta, 1)[0]
                weight += len(pack.samples) / 2
            else:
                total -= float(pack.weights.astype(np.float64) @ scores)
                weight += float(pack.weights.sum(dtype=np.float64))
        self._reference = kept
        progress = self.progress
        self.progress = Progress(
            progress.step, progress.tokens, progress.loss, total / weight, progress.base_model, progress.samples
        )

    def _check(self, pack: Pack, scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
        wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong):
            sample = pack.samples[int(pack.documents[wrong[0]])]
            raise _fault(f"step {self.progress.step + 1}: the loss of row {sample + 1} is not finite")


def _fault(problem: str) -> HeadraceError:
    return HeadraceError("training_failed", f"{problem}; lower the learning rate, or look at that row")
