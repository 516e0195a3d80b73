"""Step: one execution of the model over a flat batch of item slices under one token and time budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.scheduling.item import Item


class Slice(NamedTuple):
    """The part of one item that a step computes: ``item.tokens[start : start + count]``.

    ``logit_rows`` is how many of the slice's last rows want logits: 1 when the slice reaches the item's end, 0 inside
    a prompt or of an item that is only embedded, more when prompt logprobs are asked for. Rows beyond the item's end verify
    drafted tokens (:attr:`Step.drafted`), each with logits. (A named tuple, because 256 of
    them are made for a step and frozen dataclasses take three times as long.)
    """

    item: Item
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    logit_rows: int

    @property
    def end(self) -> int:
        """Position after the slice's last token."""
        return self.start + self.count

    @property
    def completes(self) -> bool:
        """True when the slice computes the item's last known token, so that a new one can be sampled."""
        return self.end >= len(self.item.tokens)


@dataclass(frozen=True, slots=True)
class PageCopy:
    """Copy one page's bytes before the step runs (a fork writes into a shared, part-filled page)."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Step:
    """What the next execution computes, in order. Immutable, so that it can be recorded and replayed.

    ``predicted`` is the time in seconds that Cost expects. ``preempted`` items gave their pages back for this step.
    ``adapter_pages``: of the different adapters that its slices use. ``drafted``: by item id, the tokens beyond its end that
    its slice computes, so that what is sampled behind each can be compared with the next.
    """

    slices: tuple[Slice, ...]
    copies: tuple[PageCopy, ...] = ()
    preempted: tuple[Item, ...] = ()
    predicted: float = 0.0
    adapter_pages: int = 0
    drafted: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Rows computed."""
        return sum(piece.count for piece in self.slices)

    @property
    def logit_rows(self) -> int:
        """Rows that pass through the head."""
        return sum(piece.logit_rows for piece in self.slices)

    @property
    def attention_work(self) -> int:
        """Sum over rows of the keys they attend to (query-key pairs)."""
        return sum(piece.count * piece.start + piece.count * (piece.count + 1) // 2 for piece in self.slices)
