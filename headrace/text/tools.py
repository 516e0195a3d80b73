"""Tools in a chat: what the model is shown, what it may answer, and how the answer is read.

A template that knows tools gets them and its own dialect is parsed. For one that doesn't (SmolLM2), the tools are put
into the system message in the Hermes manner, earlier calls and results become text, and the same dialect is parsed.
Either way a grammar makes each call's arguments valid against the tool's schema by construction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import HeadraceError
from headrace.settings.nearest import suggestion
from headrace.text.chat_template import ChatTemplate, Message
from headrace.text.grammar_spec import GrammarSpec
from headrace.text.tool_dialects import HERMES, Dialect, call_grammar, dialect_of

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FUNCTION_KEYS = ("name", "description", "parameters", "strict")
_PREAMBLE = """\
You can call functions to help with the user's request. They are listed between <tools> and </tools>, one JSON object a line:
<tools>
{tools}
</tools>
To call a function, answer with its name and arguments as a JSON object:
<tool_call>
{{"name": <function name>, "arguments": <arguments as a JSON object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """The tool fields of a chat request.

    ``choice``: ``"auto"``, ``"none"``, ``"required"`` or ``{"type": "function", "function": {"name": …}}``.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]]
    choice: str | Mapping[str, Any] = "auto"
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What to do about tools: messages and tools for the template, the grammar of the output, the dialect to parse.

    ``dialect`` ``None``: the output is plain text (choice ``none``). ``keep_special``: for the text stream.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None
    grammar: GrammarSpec | None
    dialect: Dialect | None

    @property
    def keep_special(self) -> tuple[str, ...]:
        """Special tokens that are part of the dialect's spelling."""
        return self.dialect.keep_special if self.dialect is not None else ()


def plan_tools(request: ToolRequest, template: ChatTemplate) -> ToolPlan:
    """Check the tools and decide. Errors: ``HeadraceError("invalid_value", …, param)`` naming the tool's field.

    Without tools this still turns earlier calls and results into text for a template that knows none.
    """
    schemas = _check_tools(request.tools)
    native = template.supports_tools
    dialect = (dialect_of(template.source) if native else None) or HERMES
    wanted, forced = _check_choice(request.choice, schemas)
    active = bool(wanted)
    grammar = None
    if active:
        try:
            source = call_grammar(dialect, {name: schemas[name] for name in wanted}, forced=forced, parallel=request.parallel)
        except RecursionError:
            raise HeadraceError("invalid_value", "the parameters of a tool nest too deeply", param="tools") from None
        grammar = GrammarSpec("lark", source)
    if native:
        messages, shown = tuple(request.messages), tuple(request.tools) or None
    else:
        messages, shown = tuple(_as_text(request.messages, request.tools if active else ())), None
    return ToolPlan(messages, shown, grammar, dialect if active else None)


def tool_preamble(tools: Sequence[Mapping[str, Any]]) -> str:
    """The text that shows ``tools`` to a model whose template can't."""
    return _PREAMBLE.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def _as_text(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages for a template without tools: preamble in the system message, calls and results as tagged text."""
    turned = [_turn(message) for message in messages]
    if not tools:
        return turned
    preamble = tool_preamble(tools)
    if turned and turned[0].get("role") in ("system", "developer") and isinstance(turned[0].get("content"), str):
        return [{**turned[0], "content": f"{turned[0]['content']}\n\n{preamble}"}, *turned[1:]]
    return [{"role": "system", "content": preamble}, *turned]


def _turn(message: Message) -> Message:
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{_plain(message.get('content'))}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    calls = [f"<tool_call>\n{_call_text(call)}\n</tool_call>" for call in message["tool_calls"]]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(([_plain(message["content"])] if message.get("content") else []) + calls)}


def _call_text(call: Mapping[str, Any]) -> str:
    function = call["function"]
    arguments = function.get("arguments", "{}")
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {shown or "{}"}}}'


def _plain(content: Any) -> str:
    if isinstance(content, list | tuple):
        return "".join(str(part.get("text", "")) for part in content)
    return "" if content is None else str(content)


def _check_tools(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tool name to parameter schema, in order."""
    if len(tools) > MAX_TOOLS:
        raise HeadraceError("invalid_value", f"at most {MAX_TOOLS} tools are allowed, not {len(tools)}", param="tools")
    schemas: dict[str, Any] = {}
    for index, tool in enumerate(tools):
        at = f"tools.{index}"
        if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
            raise HeadraceError("invalid_value", "must be {'type': 'function', 'function': {…}}", param=at)
        function = tool["function"]
        for key in function:
            if key not in _FUNCTION_KEYS:
                raise HeadraceError(
                    "unknown_parameter",
                    f"unknown field '{key}'{suggestion(str(key), _FUNCTION_KEYS)}",
                    param=f"{at}.function.{key}",
                )
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise HeadraceError("invalid_value", "must be 1 to 64 of A-Z a-z 0-9 _ . -", param=f"{at}.function.name")
        if name in schemas:
            raise HeadraceError("invalid_value", f"the name '{name}' is used twice", param=f"{at}.function.name")
        schemas[name] = _parameters(function.get("parameters"), f"{at}.function.parameters")
    return schemas


def _parameters(value: Any, param: str) -> Mapping[str, Any]:
    """The arguments' schema; without one a tool takes an empty object. Arguments are always an object."""
    if value is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(value, Mapping) or value.get("type", "object") != "object":
        raise HeadraceError("invalid_value", "must be a JSON schema of an object", param=param)
    return {"type": "object", **value}


def _check_choice(choice: str | Mapping[str, Any], schemas: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """The tools that may be called, and whether one must be."""
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or not isinstance(name, str):
            raise HeadraceError(
                "invalid_value", "must name a function as {'type': 'function', 'function': {'name': …}}", param="tool_choice"
            )
        if name not in schemas:
            raise HeadraceError("invalid_value", f"there is no tool '{name}'{suggestion(name, schemas)}", param="tool_choice")
        return (name,), True
    if choice not in ("auto", "none", "required"):
        hint = suggestion(str(choice), ("auto", "none", "required"))
        raise HeadraceError("invalid_value", f"must be auto, none, required or a named function{hint}", param="tool_choice")
    if choice == "required" and not schemas:
        raise HeadraceError("invalid_value", "tool_choice is required and there are no tools", param="tool_choice")
    return (() if choice == "none" else tuple(schemas)), choice == "required"
