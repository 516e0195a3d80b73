"""Handlers of the Messages API: its bodies become chat bodies, its answers are made from the same pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import msgspec
from starlette.types import ASGIApp

from headrace.errors import HeadraceError
from headrace.server.chat import chat_job
from headrace.server.chat_prompt import ChatPrompt, chat_prompt
from headrace.server.generation import Generation
from headrace.server.message_answer import MESSAGE_STREAM, MessageWriter
from headrace.server.protocol.chat import (
    AssistantMessage,
    ChatRequest,
    FunctionCall,
    FunctionSpec,
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
from headrace.server.protocol.messages import (
    AnyChoice,
    Block,
    CountRequest,
    MessageRequest,
    NoChoice,
    OneChoice,
    TextBlock,
    TokenCount,
    ToolResultBlock,
    ToolUseBlock,
    TurnMessage,
)
from headrace.server.rendering import encode_json, json_bytes, json_response
from headrace.server.requests import Call
from headrace.server.service import Service
from headrace.server.sse import EventStream


async def create(service: Service, call: Call[MessageRequest]) -> ASGIApp:
    """``POST /messages``."""
    body = call.body
    chat = _chat_body(body)
    standing = service.tenants.standing(call.tenant, chat)
    prepared = await _prompt(service, chat)
    room = service.language.context_length - len(prepared.prompt.ids)
    capped = 0 < room < body.max_tokens  # clients name the largest answer they would take, whatever the model's context
    job = chat_job(service, msgspec.structs.replace(chat, max_tokens=room) if capped else chat, prepared)
    generation = Generation(service, [job], standing, call.claim)
    writer = MessageWriter(service.model_name, generation, prepared.dialect, capped=capped)
    if body.stream:
        stream = EventStream(generation, writer.events, writer.tail, service.settings, MESSAGE_STREAM)
        stream.header("request-id", call.request_id)
        return stream
    async with generation as turns:
        async for pieces in turns:
            writer.add(pieces)
    return json_bytes(encode_json(writer.whole()), {"request-id": call.request_id})


async def count_tokens(service: Service, call: Call[CountRequest]) -> ASGIApp:
    """``POST /messages/count_tokens``."""
    prepared = await _prompt(service, _chat_body(call.body))
    return json_response(TokenCount(len(prepared.prompt.ids)), headers={"request-id": call.request_id})


async def _prompt(service: Service, chat: ChatRequest) -> ChatPrompt:
    if isinstance(chat.messages[-1], AssistantMessage):
        message = "The last turn must be the user's: an assistant's turn can't be continued here."
        raise HeadraceError("invalid_value", message, param="messages")
    return await chat_prompt(service.language, chat)


def _chat_body(body: CountRequest) -> ChatRequest:
    """The same call in the chat API's words. Raises ``invalid_value`` for blocks in the wrong turns."""
    choice = body.tool_choice
    wanted = body.output_config.format if body.output_config is not None else None
    sampling = body if isinstance(body, MessageRequest) else None
    return ChatRequest(
        model=body.model,
        messages=list(_messages(body)),
        tools=[
            Tool(type="function", function=FunctionSpec(name=tool.name, description=tool.description, parameters=tool.input_schema))
            for tool in body.tools or ()
        ] or None,
        tool_choice=_tool_choice(body),
        parallel_tool_calls=not (choice is not None and not isinstance(choice, NoChoice) and choice.disable_parallel_tool_use),
        response_format=None if wanted is None else JsonSchemaFormat(json_schema=SchemaSpec(name="output", schema=wanted.schema)),
        max_tokens=sampling.max_tokens if sampling is not None else None,
        stop=sampling.stop_sequences if sampling is not None else None,
        temperature=sampling.temperature if sampling is not None else None,
        top_k=sampling.top_k if sampling is not None else None,
        top_p=sampling.top_p if sampling is not None else None,
        keep_alive=sampling.keep_alive if sampling is not None else None,
    )  # fmt: skip


def _tool_choice(body: CountRequest) -> Literal["none", "required"] | NamedToolChoice | None:
    choice = body.tool_choice
    if choice is not None and not body.tools:
        raise HeadraceError("invalid_value", "'tool_choice' needs 'tools'.", param="tool_choice")
    if isinstance(choice, OneChoice):
        return NamedToolChoice(type="function", function=NamedFunction(name=choice.name))
    if isinstance(choice, AnyChoice):
        return "required"
    return "none" if isinstance(choice, NoChoice) else None


def _messages(body: CountRequest) -> Iterator[Message]:
    if body.system:
        yield SystemMessage(content=_text(body.system))
    for number, turn in enumerate(body.messages):
        if isinstance(turn.content, str):
            yield _plain(turn.role, turn.content)
        elif turn.role == "assistant":
            yield _assistant(turn.content, number)
        else:
            yield from _of_user(turn, turn.content, number)


def _plain(role: str, text: str) -> Message:
    if role == "system":
        return SystemMessage(content=text)
    return AssistantMessage(content=text) if role == "assistant" else UserMessage(content=text)


def _assistant(blocks: list[Block], number: int) -> AssistantMessage:
    """An assistant's turn: its text, then its calls."""
    calls = [
        ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=json.dumps(block.input, ensure_ascii=False)))
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    for place, block in enumerate(blocks):
        if isinstance(block, ToolResultBlock):
            raise _wrong_place("tool_result", "user", number, place)
    text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    return AssistantMessage(content=text or None, tool_calls=calls or None)


def _of_user(turn: TurnMessage, blocks: list[Block], number: int) -> Iterator[Message]:
    """A user's turn: results of calls, then what the user says."""
    text: list[str] = []
    for place, block in enumerate(blocks):
        if isinstance(block, ToolUseBlock):
            raise _wrong_place("tool_use", "assistant", number, place)
        if isinstance(block, TextBlock):
            text.append(block.text)
        elif turn.role == "system":
            raise _wrong_place("tool_result", "user", number, place)
        else:
            content = _text(block.content or "")
            yield ToolMessage(tool_call_id=block.tool_use_id, content=f"Error: {content}" if block.is_error else content)
    if text or not blocks:
        yield _plain(turn.role, "".join(text))


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _wrong_place(kind: str, role: str, number: int, place: int) -> HeadraceError:
    param = f"messages[{number}].content[{place}]"
    return HeadraceError("invalid_value", f"'{param}': a {kind} block belongs to a turn of the {role}.", param=param)
