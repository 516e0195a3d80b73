"""Answers as bytes: JSON bodies, and refusals in the OpenAI dialect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from headrace.errors import ERROR_TABLE, HeadraceError

_encoder = msgspec.json.Encoder()
encode_json = _encoder.encode

_SLICE = 1024
JSON_TYPE = "application/json"

STATUS_HUNG_UP = 499
"""Only in logs and metrics: the client left before its answer."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """What OpenAI clients read of a refusal."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every refusal."""

    error: ErrorDetail


def error_body(error: HeadraceError) -> bytes:
    """A refusal as JSON."""
    return encode_json(ErrorBody(ErrorDetail(error.message, error.kind.type, error.param, error.code)))


class MessagesErrorDetail(msgspec.Struct, frozen=True):
    """What Anthropic's clients read of a refusal."""

    type: str
    message: str


class MessagesErrorBody(msgspec.Struct, frozen=True):
    """The body of every refusal of the Messages API."""

    error: MessagesErrorDetail
    type: str = "error"


_MESSAGES_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


def messages_error_body(error: HeadraceError) -> bytes:
    """A refusal in the dialect of the Messages API."""
    status = error.kind.status
    kind = _MESSAGES_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return encode_json(MessagesErrorBody(MessagesErrorDetail(kind, error.message)))


def error_body_for(path: str, error: HeadraceError) -> bytes:
    """A refusal in the dialect that clients of this path speak."""
    inside = path.removeprefix("/v1")
    return messages_error_body(error) if inside == "/messages" or inside.startswith("/messages/") else error_body(error)


def error_response(error: HeadraceError, headers: dict[str, str] | None = None, path: str = "") -> Response:
    """A refusal as an answer of this path, with Retry-After where waiting may help."""
    extra = dict(headers or {})
    if error.retry_after is not None:
        extra["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    elif error.kind.status == 429:
        extra["x-should-retry"] = "false"  # OpenAI's clients would try again
    if error.kind.status == 401:
        extra["www-authenticate"] = "Bearer"
    return Response(error_body_for(path, error), status_code=error.kind.status, headers=extra, media_type=JSON_TYPE)


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A struct (or plain JSON value) as an answer."""
    return Response(encode_json(body), status_code=status, headers=headers, media_type=JSON_TYPE)


def json_bytes(data: bytes, headers: dict[str, str] | None = None) -> Response:
    """JSON that is already encoded as an answer."""
    return Response(data, headers=headers, media_type=JSON_TYPE)


def encode_slices(items: Sequence[Any]) -> msgspec.Raw:
    """A long list as JSON, in slices: between them other threads, above all the event loop's, may run."""
    slices = (encode_json(items[start : start + _SLICE])[1:-1] for start in range(0, len(items), _SLICE))
    return msgspec.Raw(b"[" + b",".join(slices) + b"]")


def table_error(code: str, *, param: str | None = None) -> HeadraceError:
    """A refusal that says just what its row of the table means."""
    return HeadraceError(code, ERROR_TABLE[code].meaning, param=param)


def internal_error() -> HeadraceError:
    """What a client sees of a bug: nothing of its inside."""
    return table_error("internal_error")
