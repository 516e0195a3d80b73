"""Refusing at once who would be served too late: early abort as in "S-LoRA: Serving Thousands of Concurrent LoRA Adapters".

The paper drops requests that have waited so long that their first token can't come in time, so that the machine's time goes to
those that can still be served well. Here the wait is foreseen from what stands before a request and the time that Cost expects of
steps, so that most are refused when they come and can go elsewhere. Changed too: the paper serves the newest first under
overload; here the order stays, since whoever can't make it is no longer in it. Pure policy: time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headrace.scheduling.composer import Budget
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind
from headrace.scheduling.roster import Roster

_FEWEST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Pace:
    """Rows of prompts that a step computes beside the streams, and how long such a step takes."""

    rows: int
    seconds: float


def pace(cost: Cost, tokens: int, streams: int, most_seconds: float | None) -> Pace:
    """What steps of ``tokens`` rows do for prompts beside so many ``streams``, none longer than ``most_seconds``."""
    rows = tokens - streams
    if most_seconds is not None and streams:
        rows = min(rows, cost.max_tokens_within(most_seconds, (streams, 0, streams, 0), 0))
    rows = max(rows, _FEWEST_ROWS)
    return Pace(rows, cost.predict(streams + rows, 0, streams))


@dataclass(frozen=True, slots=True)
class Promise:
    """``seconds``: a first token comes at most so much later than it would on an idle machine.

    Whose prompt is long gets the time that it takes by itself on top, and is not refused for being long. Embeddings, items that
    had their first token, and those of less than the usual priority are promised nothing.
    """

    seconds: float

    def late(self, waiting: Iterable[Item], ahead: int, now: float, pace: Pace) -> list[Item]:
        """Of the ``waiting`` items in the order in which they are served, those that can't begin in time.

        ``ahead``: rows that go before all of them. Rows of those that are late go before nobody. Prompts count whole, also where
        pages of them may be known: the foreseen wait is the longest.
        """
        found = []
        for item in waiting:
            if self._is_owed(item) and now + ahead // pace.rows * pace.seconds > item.arrival + self.seconds:
                found.append(item)
            else:
                ahead += item.pending
        return found

    @staticmethod
    def _is_owed(item: Item) -> bool:
        return item.kind is ItemKind.GENERATE and item.generated == 0 and item.computed == 0 and item.priority >= 0


def late_items(promised_ms: int | None, roster: Roster, cost: Cost, budget: Budget, now: float) -> list[Item]:
    """Waiting items whose first token can't come as promised; none where nothing is promised."""
    if promised_ms is None or not roster.waiting:
        return []
    rate = pace(cost, budget.tokens, len(roster.decodes), budget.bound(cost))
    ahead = sum(item.pending for item in roster.prompts)
    return Promise(promised_ms / 1000).late(roster.waiting.in_order(), ahead, now, rate)
