"""A typed table of named choices; command-line choices and refusals come from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from headrace.errors import HeadraceError
from headrace.settings.nearest import suggestion

Choice = TypeVar("Choice")


class Registry(Generic[Choice]):
    """Named choices of one kind, fixed when built. ``kind`` is the option they are chosen by."""

    def __init__(self, kind: str, choices: Mapping[str, Choice]) -> None:
        self.kind = kind
        self._choices = dict(choices)

    @property
    def names(self) -> tuple[str, ...]:
        """All names in the order of declaration; the first is the default."""
        return tuple(self._choices)

    def get(self, name: str) -> Choice:
        """The choice of that name. Raises ``invalid_setting`` naming the nearest valid one."""
        if name not in self._choices:
            known = ", ".join(self._choices)
            message = f"{self.kind} must be one of {known}, not '{name}'{suggestion(name, self._choices)}"
            raise HeadraceError("invalid_setting", message, param=self.kind)
        return self._choices[name]
