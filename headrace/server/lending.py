"""Who may use how much of the memory for pages that models have in common: pure arithmetic, no clock and no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FLOOR = 4
"""A model keeps this part (one n-th) of its own pages whatever others want."""
_LEFT = 4  # a lender that is busy keeps free one n-th of what its requests hold


@dataclass(frozen=True, slots=True)
class Tenant:
    """A model in memory. All in bytes.

    ``own``: its part when everybody wants pages. ``most``: what it could map. ``told``: what it was allowed last;
    ``confirmed``: what its engine has in use or free by its own word. ``free``: of that, what no request holds.
    ``lacks``: what its requests wait for, 0 when they don't. ``busy``: it has requests.
    """

    name: str
    own: int
    most: int
    told: int
    confirmed: int
    free: int
    lacks: int
    busy: bool

    @property
    def taken(self) -> int:
        """What counts as its own until the engine has said that it is not."""
        return max(self.told, self.confirmed)


def floor_of(own: int) -> int:
    """What a model with that part keeps, in memory or not, so that whoever comes finds something at once."""
    return own // FLOOR


def divide(tenants: Sequence[Tenant], budget: int) -> dict[str, int]:
    """What each tenant may use from now on; those that stay as they are are left out.

    Nothing moves unless somebody lacks pages. Then what nobody has goes to those who lack, the poorest beside their own part first;
    else others give: idle ones before busy ones, never below their floor nor what their requests hold. Who has less than its
    own part gets that back from whoever has more, though that one lacks pages as well. Nothing is given away before it has been
    confirmed as free, so that all together never exceed the budget.
    """
    told: dict[str, int] = {}
    room = budget - sum(one.taken for one in tenants)
    due = sum(one.taken - one.told for one in tenants)  # on its way back already
    wanted = owed = 0
    for one in sorted((one for one in tenants if one.lacks), key=lambda one: (one.told / max(1, one.own), one.name)):
        want = min(one.lacks, one.most - one.told)
        given = max(0, min(want, room))
        if given:
            told[one.name] = one.told + given
            room -= given
        wanted += want - given
        owed += max(0, min(want - given, one.own - one.told - given))
    wanted -= due
    owed -= due
    for one in sorted((one for one in tenants if not one.lacks), key=lambda one: (one.busy, -one.free, one.name)):
        spare = min(_spare(one), wanted)
        if spare > 0:
            told[one.name] = one.told - spare
            wanted -= spare
            owed -= spare
    granted = {one.name for one in tenants if told.get(one.name, 0) > one.told}
    for one in sorted((one for one in tenants if one.name not in granted), key=lambda one: (one.own - one.told, one.name)):
        now = told.get(one.name, one.told)
        excess = min(now - one.own, owed)
        if excess > 0:
            told[one.name] = now - excess
            owed -= excess
    return told


def _spare(one: Tenant) -> int:
    """What a tenant that lacks nothing can give."""
    held = one.confirmed - one.free
    keep = max(floor_of(one.own), held + held // _LEFT if one.busy else held)
    return one.told - keep
