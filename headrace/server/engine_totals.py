"""What engines counted, added up: over all that one model had (no counter falls because a process ended), and over models."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from headrace.engine.wire import Gauges

StructType = TypeVar("StructType", bound=msgspec.Struct)

_NOW = frozenset(
    {
        "running",
        "waiting",
        "pages_total",
        "pages_free",
        "pages_cached",
        "under_way",
        "stored_pages",
        "total_pages",
        "ranges",
        "maps",
        "registered",
        "resident",
        "loading",
        "adapter_pages",
        "jobs",
        "pages",
        "backbone_bytes",
    }
)
"""Fields that tell the present state; everything else only grows."""


class EngineTotals:
    """The counts of ended engines."""

    def __init__(self) -> None:
        self._past = Gauges()

    def add(self, last: Gauges) -> None:
        """An engine has ended with these."""
        self._past = _without_present(_added(self._past, last))

    def with_engine(self, present: Gauges | None) -> Gauges:
        """All counts, with the state of the present engine if there is one."""
        return self._past if present is None else _added(self._past, present)


def sum_of(gauges: Iterable[Gauges]) -> Gauges:
    """One for all models. ``page_bytes`` is then that of one of them: whoever wants bytes adds them model by model."""
    return functools.reduce(_added, gauges, Gauges())


def _added(first: StructType, second: StructType) -> StructType:
    return type(first)(**{name: _sum(name, getattr(first, name), getattr(second, name)) for name in first.__struct_fields__})


def _sum(name: str, first: Any, second: Any) -> Any:
    if first is None or second is None:
        return first if second is None else second
    if isinstance(first, msgspec.Struct):
        return _added(first, second)
    return (second or first) if name == "page_bytes" else first + second


def _without_present(counts: StructType) -> StructType:
    values: dict[str, Any] = {}
    for name in counts.__struct_fields__:
        value = getattr(counts, name)
        values[name] = _without_present(value) if isinstance(value, msgspec.Struct) else type(value)() if name in _NOW else value
    return type(counts)(**values)
