"""One click flag from one declared option."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from headrace.settings.declaration import Option


def flag(declared: Option) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorator that adds the option's flag to a command. Its value stays text: the declaration does the checking."""
    if declared.type is bool:
        return click.option(f"{declared.flag}/--no-{declared.flag[2:]}", declared.name, default=None, help=describe(declared))
    kind = {int: "INTEGER", float: "NUMBER", str: "TEXT"}[declared.type]
    metavar = "[" + "|".join(declared.choices) + "]" if declared.choices else (declared.unit or kind).upper()
    return click.option(
        declared.flag, declared.name, metavar=metavar, multiple=declared.many, default=None, help=describe(declared)
    )


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Only the flags that were given; those of lists (given several times) joined to one text."""
    return {
        name: ",".join(value) if isinstance(value, tuple) else value for name, value in values.items() if value not in (None, ())
    }


def describe(declared: Option) -> str:
    """Help text with default and bounds, for ``--help``."""
    facts = [] if declared.default is None or declared.default == () else [f"default {shown(declared.default)}"]
    if declared.bounds and not declared.choices:
        facts.append(declared.bounds)
    return f"{declared.help} [{'; '.join(facts)}]" if facts else declared.help


def shown(value: Any) -> str:
    """A value as the user would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(str(element) for element in value)
    return str(value)
