"""Body, items, events and answers of the Responses API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.batches import Metadata
from headrace.server.protocol.common import Adapters, Body, KeepAlive, Name, Priority, ServiceTier, ShortText
from headrace.server.protocol.files import Id


class ItemText(Body, frozen=True, kw_only=True):
    """A piece of an item's text; fields that answers carry may come back."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    logprobs: list[Any] | None = None


ItemTexts = Annotated[list[ItemText], Meta(max_length=limits.MAX_CONTENT_PARTS)]


class InputItem(Body, frozen=True, kw_only=True, omit_defaults=True):
    """One item of a conversation: a message (then ``role`` and ``content``), a call of a function (``call_id``, ``name`` and
    ``arguments``), or what it gave back (``call_id`` and ``output``)."""

    type: Literal["message", "function_call", "function_call_output"] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | ItemTexts | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | ItemTexts | None = None
    id: Name | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionTool(Body, frozen=True, kw_only=True):
    """A function of the client; ``parameters`` is a JSON schema."""

    type: Literal["function"]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class FunctionChoice(Body, frozen=True, kw_only=True):
    """Make the model call this function."""

    type: Literal["function"]
    name: Name


class PlainFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Free text."""


class ObjectFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class SchemaFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that follows a schema."""

    name: Name
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(Body, frozen=True, kw_only=True):
    """What the text is to be."""

    format: PlainFormat | ObjectFormat | SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class NoReasoning(Body, frozen=True, kw_only=True):
    """No reasoning model is served."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class ResponseStreamOptions(Body, frozen=True, kw_only=True):
    """Extras of a stream."""

    include_obfuscation: Literal[False] | None = None


class CountResponseRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /responses/input_tokens``: what a prompt is made of."""

    model: Name | None = None
    input: str | Annotated[list[InputItem], Meta(max_length=limits.MAX_MESSAGES)] | None = None
    instructions: str | None = None
    previous_response_id: Id | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=limits.MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: NoReasoning | None = None
    truncation: Literal["disabled"] | None = None
    conversation: None = None
    adapters: Adapters | None = None
    keep_alive: KeepAlive | None = None


class ResponseRequest(CountResponseRequest, frozen=True, kw_only=True):
    """Body of ``POST /responses``."""

    background: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Meta(max_length=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=limits.MAX_SEED)] | None = None
    metadata: Metadata | None = None
    priority: Priority | None = None
    service_tier: ServiceTier | None = None
    user: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory"] | None = None
    max_tool_calls: None = None
    prompt: None = None
    context_management: None = None
    moderation: None = None


class FollowQuery(Body, frozen=True, kw_only=True):
    """How to look at a response: as it is, or as the events behind ``starting_after``."""

    stream: bool | None = None
    starting_after: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    include_obfuscation: Literal[False] | None = None


class ItemQuery(Body, frozen=True, kw_only=True):
    """Which items to list."""

    after: Id | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] | None = None
    order: Literal["asc", "desc"] | None = None


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """Text of an answer; ``logprobs`` as in chat, when they are wanted."""

    text: str
    annotations: list[str] = []
    logprobs: Any = []


class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """What the model said."""

    id: str
    content: list[TextPart]
    status: str
    role: str = "assistant"


class CallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    """A function that the model wants called."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: str


OutputItem = MessageItem | CallItem


class InputDetails(msgspec.Struct, frozen=True):
    """Tokens of the prompt whose pages were found; nothing is charged for keeping them."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    """No model here reasons."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens of a call."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails = OutputDetails()

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int) -> ResponseUsage:
        """Make the counts consistent."""
        return cls(prompt, completion, prompt + completion, InputDetails(cached))


class ResponseFault(msgspec.Struct, frozen=True):
    """Why a response failed."""

    code: str
    message: str


class Incomplete(msgspec.Struct, frozen=True):
    """Why a response is not complete."""

    reason: str


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """A response. ``status``: queued, in_progress, completed, incomplete, failed or cancelled."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: str
    background: bool
    error: ResponseFault | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    text: TextConfig
    tool_choice: str | FunctionChoice
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    service_tier: str = "default"
    reasoning: None = None
    usage: ResponseUsage | None = None


class ResponseDeleted(msgspec.Struct, frozen=True):
    """A response is kept no longer."""

    id: str
    object: str = "response"
    deleted: bool = True


class KeptItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An input item as it is kept and listed."""

    id: str
    type: str
    role: str | None = None
    content: list[ItemText] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None
    status: str | None = None


class ItemList(msgspec.Struct, frozen=True):
    """Input items of a response."""

    data: list[KeptItem]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"


class InputTokens(msgspec.Struct, frozen=True):
    """Tokens of a prompt."""

    input_tokens: int
    object: str = "response.input_tokens"


class ResponseEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream: what it is about stands in the fields that its type has, the others are left out."""

    type: str
    sequence_number: int
    response: ResponseObject | msgspec.UnsetType = msgspec.UNSET
    output_index: int | msgspec.UnsetType = msgspec.UNSET
    content_index: int | msgspec.UnsetType = msgspec.UNSET
    item_id: str | msgspec.UnsetType = msgspec.UNSET
    item: OutputItem | msgspec.UnsetType = msgspec.UNSET
    part: TextPart | msgspec.UnsetType = msgspec.UNSET
    delta: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str | msgspec.UnsetType = msgspec.UNSET
    logprobs: Any = msgspec.UNSET
