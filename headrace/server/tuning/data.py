"""Training files to data files: every line looked at, or a list of the lines that are wrong and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.server.batch_file import lines_of
from headrace.server.language import Language
from headrace.server.storage.disk import full_disk_refused
from headrace.server.tuning.lines import LineReader
from headrace.text.chat_template import ChatTemplate
from headrace.text.lessons import Lesson
from headrace.training.dataset_file import DatasetInfo, Pair, Sample, write_dataset

MOST_LINES = 100_000
_SHOWN = 10
_SHORT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class LineError:
    """One line that can't be learnt from. ``line`` counts from 1; 0: the file as a whole."""

    line: int
    code: str
    message: str
    param: str | None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.message}"


class BadFileError(Exception):
    """A training file with lines that can't be learnt from."""

    def __init__(self, errors: list[LineError], more: int) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors
        self.more = more

    @property
    def message(self) -> str:
        """The first lines at fault, in one sentence."""
        rest = f"; and {self.more:,} more" if self.more else ""
        return "; ".join(map(str, self.errors)) + rest


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data file. ``longest``: tokens of its longest sequence."""

    info: DatasetInfo
    longest: int


def prepare(source: Path, target: Path, language: Language, *, pairs: bool, most_tokens: int) -> Prepared:
    """Make a data file of a training file. Blocks for long; raises :class:`BadFileError` or ``storage_full``.

    For a long file the template runs in a process of its own, so that requests don't wait behind it.
    """
    short = source.stat().st_size <= _SHORT_BYTES
    template = language.template if short else ChatTemplate(language.template.source, language.tokenizer)
    try:
        reader = LineReader(template, language.tokenizer, most_tokens)
        rows, longest = _rows(source, reader.preference if pairs else reader.supervised)
    finally:
        if not short:
            template.close()
    samples = ([Sample(_ints(one.tokens), _floats(one.weights)) for one in row] for row in rows)
    made: Iterator[Sample | Pair] = (Pair(row[0], row[1]) if pairs else row[0] for row in samples)
    with full_disk_refused():
        return Prepared(write_dataset(target, made, vocab=language.tokenizer.vocab_size), longest)


def _rows(source: Path, read: Callable[[bytes], list[Lesson]]) -> tuple[list[list[Lesson]], int]:
    rows: list[list[Lesson]] = []
    errors: list[LineError] = []
    wrong = 0
    for number, line in lines_of(source):
        if len(rows) >= MOST_LINES:
            raise BadFileError([LineError(number, "invalid_value", f"A file has at most {MOST_LINES:,} lines.", None)], 0)
        try:
            rows.append(read(line))
        except HeadraceError as error:
            wrong += 1
            if len(errors) < _SHOWN:
                errors.append(LineError(number, error.code, error.message, error.param))
        time.sleep(0)  # let the event loop have its turn
    if errors:
        raise BadFileError(errors, wrong - len(errors))
    if not rows:
        raise BadFileError([LineError(0, "invalid_value", "The file has no lines.", None)], 0)
    return rows, max(len(one.tokens) for row in rows for one in row)


def _ints(values: list[int]) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def _floats(values: list[float]) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)
