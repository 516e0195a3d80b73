"""Data files of training: token ids and the weight of predicting each, written by whoever has a tokenizer, mapped by the engine.

::

    header, 64 bytes   magic, version, kind (0: samples, 1: pairs), sequences, tokens, vocab, checksum of all that follows
    ends   int64 [sequences]   where each sequence ends among the tokens; of pairs: chosen, rejected, chosen, rejected …
    tokens int32 [tokens]
    weights float32 [tokens]   of predicting that token from those before it; a sequence's first weight is 0
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

MOST_SEQUENCES = 10_000_000
MOST_ALL_TOKENS = 2_000_000_000
MOST_SEQUENCE = 1_048_576  # tokens

_MAGIC = b"hrdata\x00\x01"
_HEADER = struct.Struct("<8sIIqqq16s8x")  # magic, version, kind, sequences, tokens, vocab, checksum
_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sequence: ``tokens``, int32 [n], and ``weights``, float32 [n], of predicting each from those before it."""

    tokens: Int32
    weights: Float32

    @property
    def trained(self) -> int:
        """Tokens that are learnt."""
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two answers to one prompt, of which the first is preferred."""

    chosen: Sample
    rejected: Sample


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a file holds. ``samples`` counts pairs where it holds ``pairs``; ``trained_tokens``: those with a weight."""

    samples: int
    pairs: bool
    tokens: int
    trained_tokens: int


class Dataset:
    """An open file of samples or pairs, mapped: :meth:`sequence` gives views. Make one with :func:`open_dataset`."""

    def __init__(self, pairs: bool, ends: npt.NDArray[np.int64], tokens: Int32, weights: Float32) -> None:
        self.pairs = pairs
        self._ends, self._tokens, self._weights = ends, tokens, weights

    def __len__(self) -> int:
        return len(self._ends) // (2 if self.pairs else 1)

    @property
    def info(self) -> DatasetInfo:
        """Its size."""
        return DatasetInfo(len(self), self.pairs, len(self._tokens), int(np.count_nonzero(self._weights)))

    def sequence(self, index: int) -> Sample:
        """One sequence; of pairs the chosen one of pair *i* is 2·i, the rejected one follows."""
        first = int(self._ends[index - 1]) if index else 0
        return Sample(self._tokens[first : self._ends[index]], self._weights[first : self._ends[index]])

    def sequences_of(self, sample: int) -> list[Sample]:
        """The sequences of a sample (one) or pair (two)."""
        each = 2 if self.pairs else 1
        return [self.sequence(each * sample + one) for one in range(each)]


def make_sample(tokens: Iterable[int], weights: Iterable[float]) -> Sample:
    """A sample of plain lists. Raises ``invalid_value`` as :func:`write_dataset` does."""
    return Sample(np.fromiter(tokens, np.int32), np.fromiter(weights, np.float32))


def write_dataset(path: Path, rows: Iterable[Sample | Pair], *, vocab: int) -> DatasetInfo:
    """Write a file of samples, or of pairs, whole or not at all.

    Raises ``invalid_value`` for an empty or mixed file, a token outside of ``vocab``, a weight that is negative or no finite
    number, a sample in which nothing is learnt, and beyond the limits of this module; the message counts rows from 1.
    """
    sequences: list[Sample] = []
    pairs: bool | None = None
    total = 0
    for number, row in enumerate(rows, 1):
        if pairs is not None and pairs != isinstance(row, Pair):
            raise _refuse(f"row {number}: a file holds samples or pairs, not both")
        pairs = isinstance(row, Pair)
        for sample in (row.chosen, row.rejected) if isinstance(row, Pair) else (row,):
            _check_sample(sample, number, vocab)
            sequences.append(sample)
            total += len(sample.tokens)
        if len(sequences) > MOST_SEQUENCES or total > MOST_ALL_TOKENS:
            raise _refuse(f"row {number}: a file holds at most {MOST_SEQUENCES:,} sequences and {MOST_ALL_TOKENS:,} tokens")
    if pairs is None:
        raise _refuse("there is no sample in it")
    ends = np.cumsum([len(sample.tokens) for sample in sequences], dtype=np.int64)
    tokens = np.concatenate([sample.tokens for sample in sequences]).astype("<i4")
    weights = np.concatenate([sample.weights for sample in sequences]).astype("<f4")
    weights[np.concatenate([[0], ends[:-1]])] = 0.0
    _write(path, (int(pairs), len(sequences), total, vocab), (ends.astype("<i8"), tokens, weights))
    return DatasetInfo(len(sequences) // (2 if pairs else 1), pairs, total, int(np.count_nonzero(weights)))


def open_dataset(path: Path, vocab: int) -> Dataset:
    """Open a file for a model with so many tokens. Nothing in it is believed unchecked.

    Raises ``invalid_value`` when it is damaged, cut, or of another vocabulary.
    """
    try:
        mapped = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise _refuse(f"{path.name} can't be opened: {error}") from None
    if mapped.size < _HEADER.size:
        raise _refuse(f"{path.name} is too short for its header")
    magic, version, kind, sequences, tokens, own_vocab, digest = _HEADER.unpack(mapped[: _HEADER.size].tobytes())
    if magic != _MAGIC or version != _VERSION or kind not in (0, 1):
        raise _refuse(f"{path.name} is no data file of this version")
    if not 1 <= sequences <= MOST_SEQUENCES or not 1 <= tokens <= MOST_ALL_TOKENS or (kind == 1 and sequences % 2):
        raise _refuse(f"{path.name} claims {sequences} sequences of {tokens} tokens")
    if mapped.size != _HEADER.size + 8 * sequences + 8 * tokens:
        raise _refuse(f"{path.name} has {mapped.size} bytes, its header asks for others")
    if own_vocab != vocab:
        raise _refuse(f"{path.name} was made for a vocabulary of {own_vocab}, the model has {vocab}")
    if hashlib.blake2b(mapped[_HEADER.size :].data, digest_size=16).digest() != digest:
        raise _refuse(f"{path.name} is damaged: its checksum is wrong")
    ends = mapped[_HEADER.size : _HEADER.size + 8 * sequences].view("<i8")
    ids = mapped[_HEADER.size + 8 * sequences :][: 4 * tokens].view("<i4")
    weights = mapped[-4 * tokens :].view("<f4")
    if int(ends[-1]) != tokens or ends[0] < 1 or (np.diff(ends) < 1).any() or ids.min() < 0 or ids.max() >= vocab:
        raise _refuse(f"{path.name} holds a sequence without tokens, or a token outside of the vocabulary")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise _refuse(f"{path.name} holds a weight that is negative or no finite number")
    return Dataset(kind == 1, ends, ids, weights)


def _check_sample(sample: Sample, number: int, vocab: int) -> None:
    tokens, weights = sample.tokens, sample.weights
    if tokens.ndim != 1 or tokens.shape != weights.shape:
        raise _refuse(f"row {number}: {tokens.shape} tokens have {weights.shape} weights")
    if not 2 <= len(tokens) <= MOST_SEQUENCE:
        raise _refuse(f"row {number}: a sequence has 2 to {MOST_SEQUENCE:,} tokens, not {len(tokens)}")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise _refuse(f"row {number}: a token lies outside of the vocabulary of {vocab}")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise _refuse(f"row {number}: a weight is negative or no finite number")
    if not weights[1:].any():
        raise _refuse(f"row {number}: nothing is learnt in it, all weights are 0")


def _write(path: Path, facts: tuple[int, int, int, int], arrays: Iterable[npt.NDArray[np.generic]]) -> None:
    parts = [np.ascontiguousarray(one).data for one in arrays]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    kind, sequences, tokens, vocab = facts
    header = _HEADER.pack(_MAGIC, _VERSION, kind, sequences, tokens, vocab, digest.digest())
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as made:
        try:
            for piece in _pieces(header, parts):
                made.write(piece)
            made.flush()
            os.fsync(made.fileno())
            Path(made.name).replace(path)
        finally:
            Path(made.name).unlink(missing_ok=True)


def _pieces(header: bytes, parts: list[memoryview]) -> Iterator[bytes | memoryview]:
    yield header
    yield from parts


def _refuse(problem: str) -> HeadraceError:
    return HeadraceError("invalid_value", f"training data: {problem}", param="training_file")
