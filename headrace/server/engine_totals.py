"""What engines counted, added up over all that one model had: no counter falls because a process ended."""

from __future__ import annotations

from headrace.engine.gauge_sums import added, without_present
from headrace.engine.wire import Gauges


class EngineTotals:
    """The counts of ended engines."""

    def __init__(self) -> None:
        self._past = Gauges()

    def add(self, last: Gauges) -> None:
        """An engine has ended with these."""
        self._past = without_present(added(self._past, last))

    def with_engine(self, present: Gauges | None) -> Gauges:
        """All counts, with the state of the present engine if there is one."""
        return self._past if present is None else added(self._past, present)
