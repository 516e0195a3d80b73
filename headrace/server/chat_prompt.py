"""From a chat body to what the model is given: plain messages, tools in the template's manner, one constraint on the output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.engine.sampling_params import GrammarSpec
from headrace.errors import HeadraceError
from headrace.server.language import Language, Prompt
from headrace.server.protocol.chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat, NamedToolChoice
from headrace.server.sampling import Constraint, extension_grammar
from headrace.text.chat_template import Conversation
from headrace.text.tool_dialects import Dialect
from headrace.text.tools import ToolPlan, ToolRequest, plan_tools

_DOTTED_INDEX = re.compile(r"\.(\d+)(?=\.|$)")
_ANSWER_ONLY = ("refusal", "annotations")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """``dialect``: how calls are spelt in the output; ``None`` when the output is plain text."""

    prompt: Prompt
    constraint: Constraint
    dialect: Dialect | None


async def chat_prompt(language: Language, body: ChatRequest) -> ChatPrompt:
    """Render and tokenise, off the loop. Raises what tools, template and limits refuse."""
    language.check_length(sum(map(len, _texts(body))), "messages")

    def work() -> ChatPrompt:
        language.check_tokens(_texts(body), "messages")
        try:
            plan = plan_tools(_tool_request(body), language.template)
            constraint = _constraint(body, plan)
            return ChatPrompt(language.render(Conversation(plan.messages, plan.tools)), constraint, plan.dialect)
        except HeadraceError as error:
            raise _with_path(error) from None

    # The template runs in a process of its own: waiting for it must not hold the loop, however small the prompt.
    return await language.on_thread(work)


def _texts(body: ChatRequest) -> Iterator[str]:
    """Every text of the messages."""
    for message in body.messages:
        content = message.content
        if isinstance(content, str):
            yield content
        else:
            yield from (part.text for part in content or ())


def _tool_request(body: ChatRequest) -> ToolRequest:
    choice = body.tool_choice
    return ToolRequest(
        messages=[_plain(message) for message in body.messages],
        tools=[_without_nulls(msgspec.to_builtins(tool)) for tool in body.tools or ()],
        choice=msgspec.to_builtins(choice) if isinstance(choice, NamedToolChoice) else choice or "auto",
        # A named function is wanted once, as OpenAI does it.
        parallel=body.parallel_tool_calls is not False and not isinstance(choice, NamedToolChoice),
    )


def _plain(message: Any) -> dict[str, Any]:
    """A message as templates know it: no fields that were left out, text parts joined."""
    built: dict[str, Any] = msgspec.to_builtins(message)
    kept = {name: value for name, value in built.items() if value is not None and name not in _ANSWER_ONLY}
    if isinstance(kept.get("content"), list):
        kept["content"] = "".join(part["text"] for part in kept["content"])
    return kept


def _without_nulls(tool: dict[str, Any]) -> dict[str, Any]:
    return {**tool, "function": {name: value for name, value in tool["function"].items() if value is not None}}


def _constraint(body: ChatRequest, plan: ToolPlan) -> Constraint:
    """The one constraint on the output. Raises ``invalid_value`` when a body asks for two."""
    found = [(plan.grammar, "tools")] if plan.grammar is not None else []
    wanted = body.response_format
    if isinstance(wanted, JsonObjectFormat):
        found.append((GrammarSpec("json_object", ""), "response_format"))
    elif isinstance(wanted, JsonSchemaFormat):
        found.append((GrammarSpec("json_schema", json.dumps(wanted.json_schema.schema)), "response_format"))
    extension = extension_grammar(body)
    if extension.grammar is not None and extension.param is not None:
        found.append((extension.grammar, extension.param))
    if len(found) > 1:
        first, second = found[0][1], found[1][1]
        hint = " (or set 'tool_choice' to 'none')" if first == "tools" else ""
        raise HeadraceError("invalid_value", f"'{second}' can't be combined with '{first}'{hint}.", param=second)
    return Constraint(*found[0]) if found else Constraint(None, None)


def _with_path(error: HeadraceError) -> HeadraceError:
    """The same refusal with ``a.0.b`` written as ``a[0].b``, as everywhere in the API."""
    if error.param is None:
        return error
    param = _DOTTED_INDEX.sub(r"[\1]", error.param)
    message = error.message if param in error.message or error.code != "invalid_value" else f"'{param}': {error.message}"
    return HeadraceError(error.code, message, param=param)
