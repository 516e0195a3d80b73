"""From the items of a response's input to a chat body, and to what is kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from headrace.errors import HeadraceError
from headrace.server.identity import new_id
from headrace.server.protocol.chat import (
    AssistantMessage,
    ChatRequest,
    FunctionCall,
    FunctionSpec,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedFunction,
    NamedToolChoice,
    SchemaSpec,
    SystemMessage,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from headrace.server.protocol.responses import (
    CountResponseRequest,
    FunctionChoice,
    InputItem,
    ItemText,
    KeptItem,
    MessageItem,
    ObjectFormat,
    OutputItem,
    ResponseRequest,
    SchemaFormat,
)

_NEEDED = {
    "message": ("role", "content"), "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}  # fmt: skip


def kept_items(given: str | Sequence[InputItem] | None) -> list[KeptItem]:
    """The input as items with ids. Raises ``invalid_value`` or ``missing_parameter`` for an item that is none."""
    if given is None:
        return []
    if isinstance(given, str):
        return [_message("user", given)]
    return [_kept(item, number) for number, item in enumerate(given)]


def kept_output(output: Iterable[OutputItem]) -> list[KeptItem]:
    """What the model said, as a next turn's past."""
    found = []
    for item in output:
        if isinstance(item, MessageItem):
            found.append(_message("assistant", "".join(part.text for part in item.content), item.id))
        else:
            found.append(KeptItem(id=item.id, type="function_call", call_id=item.call_id, name=item.name, arguments=item.arguments))
    return found


def chat_body(body: CountResponseRequest, past: Sequence[KeptItem], own: Sequence[KeptItem]) -> ChatRequest:
    """The same call in the chat API's words. Raises ``missing_parameter`` when nothing is said at all."""
    messages: list[Message] = [SystemMessage(content=body.instructions)] if body.instructions else []
    messages += _messages([*past, *own])
    if not messages:
        raise HeadraceError("missing_parameter", "Missing required parameter: 'input'.", param="input")
    if body.tool_choice not in (None, "none") and not body.tools:
        raise HeadraceError("invalid_value", "'tool_choice' needs 'tools'.", param="tool_choice")
    tools = [
        Tool(type="function", function=FunctionSpec(name=tool.name, description=tool.description, parameters=tool.parameters))
        for tool in body.tools or ()
    ]
    choice = body.tool_choice
    sampling = body if isinstance(body, ResponseRequest) else ResponseRequest()
    return ChatRequest(
        model=body.model, messages=messages, tools=tools or None, parallel_tool_calls=body.parallel_tool_calls,
        tool_choice=NamedToolChoice(type="function", function=NamedFunction(name=choice.name))
        if isinstance(choice, FunctionChoice) else choice,
        response_format=_format(body), max_tokens=sampling.max_output_tokens, temperature=sampling.temperature,
        top_p=sampling.top_p, seed=sampling.seed, logprobs=wants_logprobs(sampling) or None, top_logprobs=sampling.top_logprobs,
        priority=sampling.priority, service_tier=sampling.service_tier,
    )  # fmt: skip


def wants_logprobs(body: ResponseRequest) -> bool:
    """True when the answer is to carry logprobs."""
    return bool(body.include) or bool(body.top_logprobs)


def _format(body: CountResponseRequest) -> JsonObjectFormat | JsonSchemaFormat | None:
    wanted = body.text.format if body.text is not None else None
    if isinstance(wanted, ObjectFormat):
        return JsonObjectFormat()
    if isinstance(wanted, SchemaFormat):
        return JsonSchemaFormat(json_schema=SchemaSpec(name=wanted.name, schema=wanted.schema))
    return None


def _kept(item: InputItem, number: int) -> KeptItem:
    kind = item.type or "message"
    needed = _NEEDED[kind]
    for name in needed:
        if getattr(item, name) is None:
            param = f"input[{number}].{name}"
            raise HeadraceError("missing_parameter", f"Missing required parameter: '{param}'.", param=param)
    if kind == "message":
        return _message(item.role or "user", item.content or "", item.id)
    made = item.id or new_id("fc" if kind == "function_call" else "fco")
    output = None if item.output is None else _text(item.output)
    return KeptItem(id=made, type=kind, call_id=item.call_id, name=item.name, arguments=item.arguments, output=output)


def _message(role: str, content: str | Sequence[ItemText], item_id: str | None = None) -> KeptItem:
    kind = "output_text" if role == "assistant" else "input_text"
    text = ItemText(type=kind, text=_text(content))  # type: ignore[arg-type]
    return KeptItem(id=item_id or new_id("msg"), type="message", role=role, content=[text], status="completed")


def _text(content: str | Sequence[ItemText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _messages(items: Sequence[KeptItem]) -> Iterator[Message]:
    """Messages of a chat; calls that follow each other belong to one turn of the assistant, with the text before them."""
    said: str | None = None
    calls: list[ToolCall] = []
    for item in items:
        text = _text(item.content or "")
        if item.type == "function_call":
            function = FunctionCall(name=item.name or "", arguments=item.arguments or "")
            calls.append(ToolCall(id=item.call_id or "", function=function))
            continue
        if calls or said is not None:
            yield AssistantMessage(content=said, tool_calls=calls or None)
            said, calls = None, []
        if item.type == "function_call_output":
            yield ToolMessage(tool_call_id=item.call_id or "", content=item.output or "")
        elif item.role == "assistant":
            said = text
        elif item.role == "user":
            yield UserMessage(content=text)
        else:
            yield SystemMessage(content=text)
    if calls or said is not None:
        yield AssistantMessage(content=said, tool_calls=calls or None)
