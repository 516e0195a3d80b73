"""Bodies, queries and answers of batches, and the lines of their files."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.common import Body
from headrace.server.protocol.files import ExpiresAfter, Id

Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=limits.MAX_METADATA)
]
PerPage = Annotated[int, Meta(ge=1, le=100)]
BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]


class BatchRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /batches``."""

    input_file_id: Id
    endpoint: BatchEndpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class PageQuery(Body, frozen=True, kw_only=True):
    """Which objects to list: those behind ``after``, newest first."""

    after: Id | None = None
    limit: PerPage | None = None


class BatchLine(Body, frozen=True, kw_only=True):
    """One line of a batch's file. ``body`` is checked when the line runs, as that of a call would be."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class BatchError(msgspec.Struct, frozen=True):
    """Why a batch's file can't be run, by line."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, frozen=True):
    """The first of these errors."""

    data: list[BatchError]
    object: str = "list"


class Counts(msgspec.Struct, frozen=True):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(msgspec.Struct, frozen=True):
    """Of the input tokens, those found in pages."""

    cached_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    """Of the output tokens, those of reasoning: none here."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True):
    """Tokens of all answered lines."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens_details: OutputDetails = OutputDetails()


class BatchObject(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as clients see it. Times in seconds since 1970."""

    id: str
    object: str = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str = "24h"
    status: str
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: Counts = Counts()
    usage: BatchUsage = BatchUsage()
    metadata: dict[str, str] | None = None


class BatchList(msgspec.Struct, frozen=True):
    """A page of batches."""

    data: list[BatchObject]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None
    object: str = "list"


class LineResponse(msgspec.Struct, frozen=True):
    """What a line's call answered."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True):
    """Why a line was not run at all."""

    code: str
    message: str


class LineResult(msgspec.Struct, frozen=True):
    """One line of an output or error file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineError | None


class Outlined(msgspec.Struct, frozen=True):
    """What is read again of a result: whose it is, and what it took."""

    custom_id: str
    response: Answered | None = None


class Answered(msgspec.Struct, frozen=True):
    """A response whose body may count tokens."""

    body: Counting


class Counting(msgspec.Struct, frozen=True):
    """What a body says of tokens; refusals say nothing."""

    usage: CountedUsage | None = None


class CountedUsage(msgspec.Struct, frozen=True):
    """Tokens of one answer."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: InputDetails | None = None
