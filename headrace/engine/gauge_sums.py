"""What engines counted, added up: over processes and over models."""

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
        "head_pages",
        "queue_pages",
        "urgent",
        "live",
        "available",
    }
)
"""Fields that tell the present state; everything else only grows."""


def sum_of(gauges: Iterable[Gauges]) -> Gauges:
    """One for all models. ``page_bytes`` is then that of one of them: whoever wants bytes adds them model by model."""
    return functools.reduce(added, gauges, Gauges())


def added(first: StructType, second: StructType) -> StructType:
    """Field by field."""
    return type(first)(**{name: _sum(name, getattr(first, name), getattr(second, name)) for name in first.__struct_fields__})


def _sum(name: str, first: Any, second: Any) -> Any:
    if first is None or second is None:
        return first if second is None else second
    if isinstance(first, msgspec.Struct):
        return added(first, second)
    return (second or first) if name == "page_bytes" else first + second


def without_present(counts: StructType) -> StructType:
    """Only what grows, of an engine that has ended."""
    values: dict[str, Any] = {}
    for name in counts.__struct_fields__:
        value = getattr(counts, name)
        values[name] = without_present(value) if isinstance(value, msgspec.Struct) else type(value)() if name in _NOW else value
    return type(counts)(**values)
