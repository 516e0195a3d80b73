"""Body and answers of chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.common import Body, Name, SamplingBody
from headrace.server.protocol.usage import Usage


class TextPart(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text content."""

    text: str


Parts = Annotated[list[TextPart], Meta(max_length=limits.MAX_CONTENT_PARTS)]


class FunctionCall(Body, frozen=True, kw_only=True):
    """The function of a past tool call; ``arguments`` is JSON as text."""

    name: Name
    arguments: str


class ToolCall(Body, frozen=True, kw_only=True):
    """A tool call of an earlier assistant message."""

    id: Name
    function: FunctionCall
    type: Literal["function"] = "function"
    index: Annotated[int, Meta(ge=0, le=limits.MAX_TOOL_CALLS)] | None = None


class SystemMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="system"):
    """Instructions from the application."""

    content: str | Parts
    name: Name | None = None


class DeveloperMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="developer"):
    """Instructions from the application, by their newer name; rendered as a system message."""

    content: str | Parts
    name: Name | None = None


class UserMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="user"):
    """What the user says."""

    content: str | Parts
    name: Name | None = None


class AssistantMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    """What the model said, as clients send it back; fields that answers carry as null may come back as null."""

    content: str | Parts | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=limits.MAX_TOOL_CALLS)] | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None


class ToolMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    """A tool's result."""

    content: str | Parts
    tool_call_id: Name
    name: Name | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionSpec(Body, frozen=True, kw_only=True):
    """A function the model may call; ``parameters`` is a JSON schema."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body, frozen=True, kw_only=True):
    """One tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Body, frozen=True, kw_only=True):
    """The name of a function."""

    name: Name


class NamedToolChoice(Body, frozen=True, kw_only=True):
    """Make the model call this function."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Free text."""


class JsonObjectFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class SchemaSpec(Body, frozen=True, kw_only=True):
    """A named JSON schema; the answer always follows it, so ``strict`` changes nothing."""

    name: Name
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that follows a schema."""

    json_schema: SchemaSpec


class Prediction(Body, frozen=True, kw_only=True):
    """What the caller expects to get, so that the parts that come as expected come faster."""

    type: Literal["content"]
    content: str | Parts


class ChatRequest(SamplingBody, frozen=True, kw_only=True):
    """Body of ``POST /chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Meta(max_length=1)] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    prediction: Prediction | None = None
    prompt_cache_options: None = None
    web_search_options: None = None


class FunctionOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """Function part of a tool call in an answer; ``name`` comes once, ``arguments`` in pieces."""

    name: str | None = None
    arguments: str | None = None


class ToolCallOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool call of an answer; ``index`` only in streams."""

    function: FunctionOut
    index: int | None = None
    id: str | None = None
    type: str | None = None


class TopLogprob(msgspec.Struct, frozen=True):
    """One candidate token with its text, natural logprob and UTF-8 bytes (tokens may be half a character)."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobOut(msgspec.Struct, frozen=True):
    """The chosen token and the best candidates at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Logprobs of a choice or of one chunk."""

    content: list[TokenLogprobOut] | msgspec.Raw
    refusal: None = None


class AnswerMessage(msgspec.Struct, frozen=True):
    """The model's message; ``content`` is null when there are only tool calls."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    tool_calls: list[ToolCallOut] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One finished choice."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    service_tier: str | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a choice."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[ToolCallOut] | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """One choice's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream; ``usage`` is null in all but the last when usage was asked for, absent otherwise."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
