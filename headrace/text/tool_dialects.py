"""How models spell tool calls: one row of data a dialect, and the output grammar that each row gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Dialect:
    """One spelling.

    A call is a JSON object with ``name`` and ``arguments_key``. The output reads: text, ``trigger``, ``begin``, then for
    each call ``open`` object ``close``, with ``between`` between calls, and ``end``. ``trigger`` empty: the calls are the
    whole output and begin with its first brace. ``keep_special``: special tokens that belong to the spelling, so the
    text stream must not skip them. ``marks``: a template that contains one of these speaks this dialect.
    """

    name: str
    trigger: str
    begin: str
    open: str
    close: str
    between: str
    end: str
    arguments_key: str
    marks: tuple[str, ...]
    keep_special: tuple[str, ...] = ()


HERMES = Dialect(
    name="hermes",
    trigger="<tool_call>",
    begin="",
    open="\n",
    close="\n</tool_call>",
    between="\n<tool_call>",
    end="",
    arguments_key="arguments",
    marks=("<tool_call>",),
    keep_special=("<tool_call>", "</tool_call>"),
)
MISTRAL = Dialect(
    name="mistral",
    trigger="[TOOL_CALLS]",
    begin=" [",
    open="",
    close="",
    between=", ",
    end="]",
    arguments_key="arguments",
    marks=("[TOOL_CALLS]",),
    keep_special=("[TOOL_CALLS]",),
)
LLAMA3 = Dialect(
    name="llama3",
    trigger="",
    begin="",
    open="",
    close="",
    between="; ",
    end="",
    arguments_key="parameters",
    marks=("<|python_tag|>", '"parameters": '),
)
DIALECTS = (HERMES, MISTRAL, LLAMA3)


def dialect_of(template: str | None) -> Dialect | None:
    """The dialect that a chat template's own text shows, or ``None``."""
    for dialect in DIALECTS:
        if template is not None and any(mark in template for mark in dialect.marks):
            return dialect
    return None


def call_grammar(dialect: Dialect, schemas: Mapping[str, Any], *, forced: bool, parallel: bool) -> str:
    """A Lark grammar of the whole output.

    ``schemas``: tool name to the JSON schema of its arguments. ``forced``: the output is calls and nothing else; else
    it is free text, or text and then calls. ``parallel``: more than one call may follow.
    """
    more = f"({_join(_text(dialect.close + dialect.between + dialect.open), 'call')})*" if parallel else ""
    chain = _join(_text(dialect.begin + dialect.open), "call", more, _text(dialect.close + dialect.end))
    lines = [f"call: {' | '.join(f'call_{index}' for index in range(len(schemas)))}"]
    lines += [f"call_{index}: %json {_call_schema(dialect, *pair)}" for index, pair in enumerate(schemas.items())]
    if forced:
        return "\n".join([f"start: {_join(_text(dialect.trigger), chain)}", *lines])
    if not dialect.trigger:
        return "\n".join([f"start: TEXT | {chain}", r"TEXT: /([^{\s](?s:.*))?/", *lines])
    trigger = _text(dialect.trigger)
    free = [f"start: TEXT | head {chain}", f"head[lazy]: ANY {trigger}", "ANY: /(?s:.*)/"]
    return "\n".join([*free, f"TEXT: /(?s:.*)/ & ~/(?s:.*){_escaped(dialect.trigger)}(?s:.*)/", *lines])


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _text(literal: str) -> str:
    return json.dumps(literal, ensure_ascii=False) if literal else ""


def _escaped(literal: str) -> str:
    return "".join(f"\\{char}" if char in r"\.+*?()|[]{}^$/" else char for char in literal)


def _call_schema(dialect: Dialect, name: str, parameters: Any) -> str:
    """The schema of one call as compact as templates print it: ``{"name": "f", "arguments": {…}}``."""
    key = dialect.arguments_key
    schema = {
        "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
        "type": "object",
        "properties": {"name": {"const": name}, key: _rebased(parameters, f"#/properties/{key}")},
        "required": ["name", key],
        "additionalProperties": False,
    }
    return json.dumps(schema, ensure_ascii=False)


def _rebased(schema: Any, root: str) -> Any:
    """The schema with its own local references made to point at its new place."""
    if isinstance(schema, Mapping):
        moved = {
            key: _rebased(value, root)
            for key, value in schema.items()
            if not (key in ("$schema", "$id") and isinstance(value, str))
        }
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            moved["$ref"] = root + reference[1:]
        return moved
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return [_rebased(entry, root) for entry in schema]
    return schema
