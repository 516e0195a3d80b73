"""Reports of steps while somebody watches; nothing at all while nobody does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.engine.request import Choice
from headrace.engine.watch_wire import StepReport
from headrace.scheduling.item import ItemKind
from headrace.scheduling.step import Slice, Step

LONGEST_SECONDS = 60.0
MOST_CHUNKS = 256


@dataclass(slots=True)
class Seen:
    """What is known of a step before it has run."""

    predicted: float
    rows: dict[str, int]
    sequences: int
    waiting: int
    chunks: list[tuple[int, int]]
    preempted: list[int]
    pairs: int
    heads: int
    began: float = field(default_factory=time.monotonic)

    def ended(self, model_seconds: float) -> StepReport:
        """The report, when the step has been committed."""
        seconds = time.monotonic() - self.began
        return StepReport(
            self.began, seconds, model_seconds, self.predicted, self.rows, self.sequences, self.waiting, self.chunks,
            self.preempted, self.pairs, self.heads,
        )  # fmt: skip


class StepWatch:
    """Knows until when steps are reported."""

    def __init__(self) -> None:
        self._until = 0.0

    def extend(self, seconds: float) -> None:
        """Somebody watches for so long from now on."""
        self._until = max(self._until, time.monotonic() + min(max(seconds, 0.0), LONGEST_SECONDS))

    def see(self, step: Step, choices: Mapping[int, Choice], waiting: int) -> Seen | None:
        """Look at a step that is about to run; ``None`` when nobody watches."""
        if time.monotonic() >= self._until:
            return None
        rows: dict[str, int] = {}
        chunks: list[tuple[int, int]] = []
        for piece in step.slices:
            for kind, count in rows_of(piece):
                rows[kind] = rows.get(kind, 0) + count
                if kind == "prompt" and len(chunks) < MOST_CHUNKS:
                    chunks.append((choices[piece.item.item_id].request.submit.request_id, count))
        preempted = [choices[item.item_id].request.submit.request_id for item in step.preempted if item.item_id in choices]
        work = step.attention_work, step.logit_rows
        return Seen(step.predicted, rows, len(step.slices), waiting, chunks, preempted, *work)


def rows_of(piece: Slice) -> list[tuple[str, int]]:
    """(kind, rows) of one slice: what its rows are computed for."""
    item, start, count, _ = piece
    if item.kind is not ItemKind.GENERATE:
        return [(item.kind.value, count)]
    prompt = min(max(item.prompt_length - start, 0), count)
    verify = max(piece.end - len(item.tokens), 0)
    rest = count - prompt - verify
    decode = int(rest > 0 and piece.end >= len(item.tokens))
    counts = (("prompt", prompt), ("decode", decode), ("recompute", rest - decode), ("verify", verify))
    return [(kind, rows) for kind, rows in counts if rows]
