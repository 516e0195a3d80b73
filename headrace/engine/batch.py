"""Flattening: a step becomes arrays for the chain, and lists that say what each kept row is for."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from headrace.engine.request import Choice
from headrace.kernels.interface import Int32, StepBatch
from headrace.scheduling.item import ItemKind
from headrace.scheduling.step import Step


class Draw(NamedTuple):
    """One question to the sampler: ``row`` counts the rows with logits; ``given`` −1 chooses, else scores that token.

    ``generated``: tokens sampled before this one, drafted ones included. ``after``: the drafted token that the row is behind, if
    it is one (the draws of a choice's drafts follow each other).
    """

    choice: Choice
    row: int
    given: int
    generated: int
    after: int | None = None


class PooledRows(NamedTuple):
    """Hidden rows of an embedding: ``length`` rows from the ``first`` one kept for embeddings, from position ``start``."""

    choice: Choice
    first: int
    length: int
    start: int


@dataclass(slots=True)
class Assembly:
    """A step ready to run.

    Kept rows come in three runs::

        output_rows = [ one per greedy choice and drafted token | logit_rows for draws | rows pooled into embeddings ]
    """

    batch: StepBatch
    greedy: list[Choice] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    logit_rows: int = 0
    pooled: list[PooledRows] = field(default_factory=list)
    pairs: int = 0

    @property
    def head_rows(self) -> int:
        """Rows that pass through the head."""
        return len(self.greedy) + self.logit_rows


class _Rows:
    """Kept rows while a step is being flattened."""

    __slots__ = ("draws", "greedy", "greedy_rows", "logit_rows", "pooled", "pooled_rows")

    def __init__(self) -> None:
        self.greedy: list[Choice] = []
        self.greedy_rows: list[int] = []
        self.draws: list[Draw] = []
        self.logit_rows: list[int] = []
        self.pooled: list[PooledRows] = []
        self.pooled_rows: list[int] = []

    def add(self, choice: Choice, end: int, row: int, wanted: int, choices: Mapping[int, Choice]) -> None:
        """The slice's last ``wanted`` rows; the last of all is ``row``, at position ``end`` − 1."""
        item = choice.item
        length = item.prompt_length
        if item.score_from is not None and end - wanted < length - 1:
            for position in range(end - wanted, min(end, length - 1)):
                self.draws.append(Draw(choice, len(self.logit_rows), item.tokens[position + 1], 0))
                self.logit_rows.append(row - (end - 1 - position))
        if end != len(item.tokens) or item.max_tokens == 0:
            return
        index = end - length
        if choice.plain and not item.forks and index >= choice.min_tokens:
            self.greedy.append(choice)
            self.greedy_rows.append(row)
            return
        self.draws.append(Draw(choice, len(self.logit_rows), -1, index))
        for fork in item.forks:
            self.draws.append(Draw(choices[fork.item_id], len(self.logit_rows), -1, index))
        self.logit_rows.append(row)

    def add_verified(self, choice: Choice, first: int, drafted: Sequence[int]) -> None:
        """A stream's newest token, at row ``first``, and those drafted behind it: all its rows in one run, in order."""
        index = choice.item.generated
        if choice.plain and index >= choice.min_tokens:
            self.greedy.extend([choice] * (1 + len(drafted)))
            self.greedy_rows.extend(range(first, first + 1 + len(drafted)))
            return
        if choice.history is not None:
            length = len(choice.item.tokens)
            choice.history[length : length + len(drafted)] = drafted
        for offset, after in enumerate((None, *drafted)):
            self.draws.append(Draw(choice, len(self.logit_rows), -1, index + offset, after))
            self.logit_rows.append(first + offset)

    def pool(self, choice: Choice, start: int, count: int, row: int) -> None:
        """The last ``count`` rows of an embedding's slice, from position ``start``; ``row`` is the last."""
        self.pooled.append(PooledRows(choice, len(self.pooled_rows), count, start))
        self.pooled_rows.extend(range(row - count + 1, row + 1))


def assemble(step: Step, choices: Mapping[int, Choice]) -> Assembly:
    """Flatten a step. ``choices`` are the live choices by item id."""
    tokens, positions = array("i"), array("i")
    pages: list[int] = []  # lists join faster than an array takes their numbers
    slice_starts, page_starts = array("i", (0,)), array("i", (0,))
    rows, pairs, end_row, drafted = _Rows(), 0, 0, step.drafted
    for item, start, count, wanted in step.slices:
        end = start + count
        end_row += count
        if count == 1:
            tokens.append(item.tokens[start])
            positions.append(start)
            pairs += end
        else:
            tokens.extend(item.tokens[start:end])
            if item.item_id in drafted:
                tokens.extend(drafted[item.item_id])
            positions.extend(range(start, end))
            pairs += count * start + count * (count + 1) // 2
        slice_starts.append(end_row)
        pages += item.pages
        page_starts.append(len(pages))
        if item.kind is ItemKind.EMBED:
            choice = choices[item.item_id]
            first = max(start, choice.pool_from)
            if first < end:
                rows.pool(choice, first, end - first, end_row - 1)
        elif item.item_id in drafted:
            rows.add_verified(choices[item.item_id], end_row - count, drafted[item.item_id])
        elif wanted:
            rows.add(choices[item.item_id], end, end_row - 1, wanted, choices)
    output_rows = np.array(rows.greedy_rows + rows.logit_rows + rows.pooled_rows, np.int32)
    batch = StepBatch(
        _ints(tokens), _ints(positions), _ints(slice_starts), _ints(page_starts), _ints(array("i", pages)), output_rows
    )
    return Assembly(batch, rows.greedy, rows.draws, len(rows.logit_rows), rows.pooled, pairs)


def _ints(values: array[int]) -> Int32:
    return np.frombuffer(values, np.int32)


def add_rows(rows: PooledRows, hidden: np.ndarray) -> None:
    """Add these of a step's kept rows to an embedding's sum, those that were not added before. ``hidden``: [rows, hidden size]."""
    choice = rows.choice
    if choice.pooled is None:
        choice.pooled = np.zeros(hidden.shape[1], np.float64)
    for offset in range(max(0, choice.pool_from + choice.pooled_rows - rows.start), rows.length):
        choice.pooled += hidden[offset]
        choice.pooled_rows += 1
