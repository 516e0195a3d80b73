"""Views at the border of steps: sequences are placed for the step that begins, the next one's pages are shown beside it."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from headrace.engine.wire import ViewGauges
from headrace.kernels.interface import Int32
from headrace.memory.views import Views
from headrace.scheduling.step import Step


class Viewing:
    """The engine's side of contiguous views."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def show(self, step: Step, live: Container[int]) -> Int32:
        """``first_rows`` of the step's batch; items that are not ``live`` have gone."""
        sequences = [(piece.item.item_id, piece.item.pages) for piece in step.slices]
        rows = np.array(self.views.place(live, sequences), np.int32)
        self.views.look_ahead(owner for owner, _ in sequences)
        return rows

    def gauges(self) -> ViewGauges:
        """The state of views now."""
        ledger = self.views.ledger
        return ViewGauges(
            ranges=ledger.ranges_in_use, maps=ledger.maps, shown_pages=ledger.counters.shown, kept_pages=ledger.counters.kept,
            ahead_pages=ledger.counters.ahead, refused=ledger.counters.refused, reclaimed=ledger.counters.reclaimed,
            failures=self.views.failures, inline_seconds=self.views.inline_seconds, beside_seconds=self.views.beside_seconds,
        )  # fmt: skip

    def check_integrity(self) -> None:
        """Prove that rows, owners and mappings add up. Raises ``AssertionError``."""
        self.views.ledger.check_integrity()

    def close(self) -> None:
        """Stop the thread."""
        self.views.close()
