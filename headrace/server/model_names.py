"""Which models a server has, and by which names requests find them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.models.catalog import find_model
from headrace.models.packages import aliases_of

_GIVEN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})=(.+)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One configured model: ``source`` finds its file, ``root`` is its own name, ``names`` are what requests may say."""

    name: str
    source: str
    root: str
    names: frozenset[str]


def entries(models: Sequence[str], served_name: str | None = None) -> list[Entry]:
    """The models of the option ``model``, in order.

    Raises ``invalid_setting`` when there is none, when two answer to one name, or when ``served_name`` meets several.
    """
    if not models:
        raise HeadraceError("invalid_setting", "model must name at least one model", param="model")
    if served_name is not None and len(models) > 1:
        problem = "served_name names one model; give several as NAME=MODEL each"
        raise HeadraceError("invalid_setting", problem, param="served_name")
    found = [_entry(text, served_name) for text in models]
    owners: dict[str, str] = {}
    for entry, text in zip(found, models, strict=True):
        for name in sorted(entry.names):
            if name in owners:
                problem = (
                    f"model: {owners[name]!r} and {text!r} would both answer to {name!r}; write one of them as NAME={entry.source}"
                )
                raise HeadraceError("invalid_setting", problem, param="model")
            owners[name] = text
    return found


def split_name(text: str) -> tuple[str | None, str]:
    """(name, source) of ``NAME=MODEL``; no name when there is none, or when the whole is a path."""
    given = _GIVEN.fullmatch(text)
    return (given[1], given[2]) if given and not Path(text).expanduser().exists() else (None, text)


def _entry(text: str, served_name: str | None) -> Entry:
    name, source = split_name(text)
    root = _root(source)
    given = served_name or name
    if given is not None:
        return Entry(given, source, root, frozenset({given}))
    return Entry(root, source, root, frozenset({root, *aliases_of(root)}))


def _root(source: str) -> str:
    """The model's own name; for one that can't be found the name that it would have, so that requests hear why it fails."""
    try:
        return find_model(source).name
    except HeadraceError:
        path = Path(source)
        return path.stem if path.suffix.lower() == ".gguf" else path.name
