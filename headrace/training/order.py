"""In which order a job meets its samples: a function of the seed alone, so that a job that goes on meets what it would have met."""

from __future__ import annotations

import numpy as np

from headrace.errors import HeadraceError
from headrace.training.dataset_file import Dataset
from headrace.training.pack import Pack, group_by_room, make_pack
from headrace.training.settings import TrainingSettings


class SampleOrder:
    """Optimiser steps of one data file. ``steps``: all of them; ``steps_of_epoch``: of one epoch; ``room``: tokens of a pack."""

    def __init__(self, data: Dataset, settings: TrainingSettings) -> None:
        if data.pairs != (settings.method == "dpo"):
            kind = "pairs" if data.pairs else "single samples"
            message = f"the data file holds {kind}, which method {settings.method!r} can't learn from"
            raise HeadraceError("invalid_value", message, param="training_file")
        self._data, self._settings = data, settings
        self.room = settings.max_tokens * (2 if data.pairs else 1)
        self.steps_of_epoch = -(-len(data) // settings.batch)
        self.steps = settings.epochs * self.steps_of_epoch
        for sample in range(len(data)):
            for sequence in data.sequences_of(sample):
                if not sequence.weights[1 : settings.max_tokens].any():
                    message = f"nothing is learnt within the first {settings.max_tokens} tokens of row {sample + 1}"
                    raise HeadraceError("invalid_value", message, param="training_file")

    def batch(self, step: int) -> list[Pack]:
        """The packs of one optimiser step, from 0."""
        epoch, place = divmod(step, self.steps_of_epoch)
        draws = np.random.Generator(np.random.PCG64([self._settings.seed, epoch]))
        order = draws.permutation(len(self._data))
        size = self._settings.batch
        return self.packs([int(sample) for sample in order[place * size : (place + 1) * size]])

    def everything(self) -> list[list[int]]:
        """All samples in groups that fit into one pack each, in the order of the file: for validation."""
        return group_by_room([self._length(sample) for sample in range(len(self._data))], self.room)

    def packs(self, samples: list[int]) -> list[Pack]:
        """These samples, packed."""
        groups = group_by_room([self._length(sample) for sample in samples], self.room)
        return [self.pack([samples[index] for index in group]) for group in groups]

    def pack(self, samples: list[int]) -> Pack:
        """One pack; of pairs the documents are chosen, rejected, chosen, rejected …"""
        sequences = [(sequence, sample) for sample in samples for sequence in self._data.sequences_of(sample)]
        return make_pack([one for one, _ in sequences], [sample for _, sample in sequences], self._settings.max_tokens)

    def _length(self, sample: int) -> int:
        return sum(min(len(one.tokens), self._settings.max_tokens) for one in self._data.sequences_of(sample))
