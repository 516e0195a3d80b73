"""Pages of a list by cursor: what follows the object named ``after``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from headrace.errors import HeadraceError


class Named(Protocol):
    """Anything with an id."""

    @property
    def id(self) -> str:
        """Its id."""


Item = TypeVar("Item", bound=Named)


def page(items: Sequence[Item], after: str | None, limit: int) -> tuple[list[Item], bool]:
    """At most ``limit`` items behind the one with the id ``after``, and whether there are more. Raises ``invalid_value``."""
    start = 0
    if after is not None:
        place = next((place for place, item in enumerate(items) if item.id == after), None)
        if place is None:
            raise HeadraceError("invalid_value", "'after' names nothing that is in this list.", param="after")
        start = place + 1
    return list(items[start : start + limit]), start + limit < len(items)
