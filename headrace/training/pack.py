"""Short samples one behind the other in a row of tokens, with borders that attention doesn't cross."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.training.dataset_file import Sample

Int32 = npt.NDArray[np.int32]


class Segment(NamedTuple):
    """Rows ``first … end − 1`` of one document that begins at row ``start``."""

    first: int
    end: int
    start: int


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """``tokens`` and ``positions`` int32 [T]. ``ends``: where its documents end. ``loss_rows`` int32 [L]: rows whose next token is
    learnt; ``targets`` (that token), ``weights`` and ``documents`` (whose row it is) belong to them. ``samples``: of the data file,
    by document."""

    tokens: Int32
    positions: Int32
    ends: tuple[int, ...]
    loss_rows: Int32
    targets: Int32
    weights: npt.NDArray[np.float32]
    documents: Int32
    samples: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def segments(self, first: int, end: int) -> Iterator[Segment]:
        """The parts of documents that lie in these rows, in order."""
        start = 0
        for stop in self.ends:
            if stop > first and start < end:
                yield Segment(max(first, start), min(end, stop), start)
            start = stop


def make_pack(documents: Sequence[Sample], samples: Sequence[int], most: int) -> Pack:
    """One pack of these sequences, each cut to ``most`` tokens."""
    lengths = [min(len(one.tokens), most) for one in documents]
    ends = np.cumsum(lengths)
    tokens = np.concatenate([one.tokens[:length] for one, length in zip(documents, lengths, strict=True)]).astype(np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    rows, wanted, weights, owners = [], [], [], []
    for number, (one, length, end) in enumerate(zip(documents, lengths, ends, strict=True)):
        learnt = np.flatnonzero(one.weights[1:length])
        rows.append(end - length + learnt)
        wanted.append(one.tokens[1:length][learnt])
        weights.append(one.weights[1:length][learnt])
        owners.append(np.full(len(learnt), number))
    return Pack(
        tokens, positions, tuple(int(end) for end in ends), np.concatenate(rows).astype(np.int32),
        np.concatenate(wanted).astype(np.int32), np.concatenate(weights).astype(np.float32),
        np.concatenate(owners).astype(np.int32), tuple(samples),
    )  # fmt: skip


def group_by_room(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices of ``lengths`` in groups whose sums stay within ``room``, first fit in the given order; longer ones alone."""
    groups: list[list[int]] = []
    left: list[int] = []
    for index, length in enumerate(lengths):
        place = next((one for one, free in enumerate(left) if length <= free), None)
        if place is None:
            groups.append([])
            left.append(room)
            place = len(groups) - 1
        groups[place].append(index)
        left[place] -= length
    return groups
