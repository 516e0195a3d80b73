"""The owner record of a sequence that is on the move, and the pieces in which its pages are carried."""

from __future__ import annotations

import enum
from dataclasses import dataclass

NOWHERE = -1


class MoveState(enum.Enum):
    """Where the truth about a sequence lies.

    ``LEAVING``: its pages are being copied out and are still valid. ``AWAY``: nothing of it is under way. ``COMING``: pages
    are taken for it and being filled.
    """

    LEAVING = "leaving"
    AWAY = "away"
    COMING = "coming"


@dataclass(slots=True, eq=False)
class Lodging:
    """The owner record of a sequence that is not in the pool, or not wholly.

    ``pages[i]`` is where its *i*-th page lies in the pool, ``slots[i]`` where in the tier, −1 for nowhere; ``tokens`` positions
    are computed. ``epoch`` grows with each change of hands: what was begun in an older epoch changes nothing when it ends.
    ``left`` counts pages still to be carried, ``sealing`` is the running write of a part-filled last page.
    """

    owner: int
    tokens: int
    pages: list[int]
    slots: list[int]
    state: MoveState = MoveState.LEAVING
    epoch: int = 0
    left: int = 0
    sealing: Transfer | None = None


@dataclass(slots=True, eq=False)
class Transfer:
    """One piece to carry: ``count`` adjacent pages from ``page`` on, to or from as many adjacent slots from ``slot`` on.

    ``index`` is the place of the first in its sequence. ``tokens``: positions that the sequence had when this was planned.
    """

    lodging: Lodging
    epoch: int
    index: int
    page: int
    slot: int
    count: int
    writes: bool
    tokens: int

    def take(self, most: int) -> Transfer:
        """The first ``most`` pages as a piece of their own, which this one then lacks; the piece itself when it has no more."""
        if self.count <= most:
            return self
        first = Transfer(self.lodging, self.epoch, self.index, self.page, self.slot, most, self.writes, self.tokens)
        self.index += most
        self.page += most
        self.slot += most
        self.count -= most
        return first

    @property
    def pages(self) -> range:
        """The pages it reads or fills."""
        return range(self.page, self.page + self.count)

    @property
    def slots(self) -> range:
        """The slots it fills or reads."""
        return range(self.slot, self.slot + self.count)
