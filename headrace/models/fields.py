"""Fields of foreign metadata, read with a type and bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headrace.models.files import refuse

_MISSING = object()


class Fields:
    """Typed, bounded access to a mapping that a model file declares; every error names the field and its limit."""

    __slots__ = ("_what", "values")

    def __init__(self, values: Mapping[str, object], what: str) -> None:
        self.values, self._what = values, what

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, low: int, high: int, default: object = _MISSING) -> int:
        """An integer from ``low`` to ``high``."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise refuse(f"{self._what} {name!r} must be an integer from {low} to {high}, it is {_shown(value)}")
        return value

    def number(self, name: str, low: float, high: float, default: object = _MISSING) -> float:
        """A finite number from ``low`` to ``high``."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
            raise refuse(f"{self._what} {name!r} must be a number from {low:g} to {high:g}, it is {_shown(value)}")
        return float(value)

    def text(self, name: str, default: object = _MISSING) -> str:
        """A string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise refuse(f"{self._what} {name!r} must be a string, it is {_shown(value)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise refuse(f"{self._what} {name!r} must be true or false, it is {_shown(value)}")
        return value

    def group(self, name: str) -> Fields:
        """A mapping inside; empty when absent."""
        value = self._get(name, {})
        if not isinstance(value, Mapping):
            raise refuse(f"{self._what} {name!r} must be an object, it is {_shown(value)}")
        return Fields(value, f"{self._what} {name!r}")

    def _get(self, name: str, default: object) -> object:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise refuse(f"{self._what} {name!r} is missing")
        return default


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
