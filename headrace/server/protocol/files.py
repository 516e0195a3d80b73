"""Bodies, queries and answers of the files API."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.common import Body

Id = Annotated[str, Meta(min_length=1, max_length=128)]
Lifetime = Annotated[int, Meta(ge=3600, le=2_592_000)]
Purpose = Literal["batch", "fine-tune", "evals", "user_data"]
FilesPerPage = Annotated[int, Meta(ge=1, le=10_000)]


class ExpiresAfter(Body, frozen=True, kw_only=True):
    """When a file goes by itself: seconds after it was made."""

    anchor: Literal["created_at"]
    seconds: Lifetime


class Upload(Body, frozen=True, kw_only=True):
    """The fields of an upload beside the file. ``file`` stands for its name."""

    file: Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAME_LENGTH)]
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class FileQuery(Body, frozen=True, kw_only=True):
    """Which files to list: those behind ``after`` in the order of their making."""

    after: Id | None = None
    limit: FilesPerPage | None = None
    order: Literal["asc", "desc"] | None = None
    purpose: Annotated[str, Meta(max_length=64)] | None = None


class FileObject(msgspec.Struct, frozen=True):
    """One file as clients see it. ``sha256`` is an extra."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None
    sha256: str
    status: str = "processed"
    object: str = "file"


class FileList(msgspec.Struct, frozen=True):
    """A page of files."""

    data: list[FileObject]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None
    object: str = "list"


class FileDeleted(msgspec.Struct, frozen=True):
    """A file is gone."""

    id: str
    deleted: bool = True
    object: str = "file"
