"""Body and answers of the Messages API, as Anthropic's clients speak it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.common import Body, KeepAlive, Name, ShortText, StopString


class CacheControl(Body, frozen=True, kw_only=True):
    """A mark where a cache might begin; pages of earlier prompts are found without it."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Meta(max_length=0)] | None = None


TextBlocks = Annotated[list[TextBlock], Meta(max_length=limits.MAX_CONTENT_PARTS)]


class ToolUseBlock(Body, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call that the model made in an earlier turn."""

    id: Name
    name: Name
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = None
    toolset_name: None = None


class ToolResultBlock(Body, frozen=True, kw_only=True, tag_field="type", tag="tool_result"):
    """What a tool gave back."""

    tool_use_id: Name
    content: str | TextBlocks | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: None = None


Block = TextBlock | ToolUseBlock | ToolResultBlock


class TurnMessage(Body, frozen=True, kw_only=True):
    """One turn: text, or blocks in order. Calls stand in the assistant's turns, their results in the user's."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(max_length=limits.MAX_CONTENT_PARTS)]


class MessageTool(Body, frozen=True, kw_only=True):
    """A tool of the client; ``input_schema`` is the JSON schema of its arguments."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None


class AutoChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="auto"):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class AnyChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="any"):
    """The model calls some tool."""

    disable_parallel_tool_use: bool | None = None


class OneChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="tool"):
    """The model calls this tool."""

    name: Name
    disable_parallel_tool_use: bool | None = None


class NoChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="none"):
    """The model calls no tool."""


class NoThinking(Body, frozen=True, kw_only=True):
    """No reasoning model is served."""

    type: Literal["disabled"]


class SchemaFormat(Body, frozen=True, kw_only=True):
    """An answer that follows a JSON schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Body, frozen=True, kw_only=True):
    """How the answer is to look."""

    format: SchemaFormat | None = None
    effort: None = None


class UserMetadata(Body, frozen=True, kw_only=True):
    """Whom the call is for; accepted and not used."""

    user_id: ShortText | None = None


class CountRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /messages/count_tokens``: what a prompt is made of."""

    model: Name
    messages: Annotated[list[TurnMessage], Meta(min_length=1, max_length=limits.MAX_MESSAGES)]
    system: str | TextBlocks | None = None
    tools: Annotated[list[MessageTool], Meta(max_length=limits.MAX_TOOLS)] | None = None
    tool_choice: AutoChoice | AnyChoice | OneChoice | NoChoice | None = None
    thinking: NoThinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    unsupported: ClassVar[dict[str, str]] = {
        "thinking": 'no reasoning model is served; only {"type": "disabled"}',
        "effort": "no reasoning model is served",
        "citations": "text output only",
        "toolset_name": "tools are the client's own",
        "container": "the server runs no code",
        "speed": 'only "standard"',
        "service_tier": 'only "auto" or "standard_only"',
        "type": "text, tool_use and tool_result blocks and tools of type custom are served",
        "content": "text, tool_use and tool_result blocks are served",
    }


class MessageRequest(CountRequest, frozen=True, kw_only=True):
    """Body of ``POST /messages``."""

    max_tokens: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS)]
    stop_sequences: Annotated[list[StopString], Meta(max_length=limits.MAX_STOP_STRINGS)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    metadata: UserMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
    container: None = None
    keep_alive: KeepAlive | None = None


class TokenCount(msgspec.Struct, frozen=True):
    """Tokens of a prompt."""

    input_tokens: int


class MessageUsage(msgspec.Struct, frozen=True):
    """Tokens of a call. Those of the prompt whose pages were found are in ``cache_read_input_tokens`` and nowhere else."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int) -> MessageUsage:
        """Make the counts consistent."""
        return cls(prompt - cached, completion, cached)


class TextOut(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Text of an answer."""

    text: str


class ToolUseOut(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A call of an answer; in a stream ``input`` is empty and comes in pieces."""

    id: str
    name: str
    input: dict[str, Any] | msgspec.Raw


class MessageAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer; in ``message_start`` it is still empty."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[TextOut | ToolUseOut]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    """First event."""

    message: MessageAnswer


class BlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: TextOut | ToolUseOut


class TextPiece(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    """More text of a block."""

    text: str


class InputPiece(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    """More of a call's arguments, as JSON text."""

    partial_json: str


class BlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    """A block goes on."""

    index: int
    delta: TextPiece | InputPiece


class BlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    index: int


class MessageEnd(msgspec.Struct, frozen=True):
    """Why the answer ended."""

    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag_field="type", tag="message_delta"):
    """The end's reason, and all tokens."""

    delta: MessageEnd
    usage: MessageUsage


class MessageStop(msgspec.Struct, frozen=True, tag_field="type", tag="message_stop"):
    """Last event."""


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
