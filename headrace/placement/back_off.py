"""How long to wait before what has ended is started again. Arithmetic only: the caller has the clock."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""What ran this long had no part in the ends before it."""
_MOST_DOUBLINGS = 32  # no wait gets longer by then, and a float holds it


@dataclass(slots=True)
class BackOff:
    """Twice as long each time in a row, from ``first`` seconds to :data:`LONGEST_SECONDS`. ``in_a_row``: ends so far."""

    first: float = FIRST_SECONDS
    in_a_row: int = 0

    def after(self, ran: float) -> float:
        """It has ended after so many seconds: how many to wait now."""
        self.in_a_row = 1 if ran > STEADY_SECONDS else self.in_a_row + 1
        return min(LONGEST_SECONDS, self.first * 2.0 ** min(self.in_a_row - 1, _MOST_DOUBLINGS))

    def forget(self) -> None:
        """What happened before has no part in what comes."""
        self.in_a_row = 0
