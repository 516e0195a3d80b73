"""Bodies and answers of tokenising, detokenising and rendering, and of the model list."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.common import Body, KeepAlive, Name, TokenId


class TokenizeRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /tokenize``. ``parse_special``: text like ``<|im_end|>`` becomes that special token."""

    text: Annotated[str, Meta(max_length=limits.MAX_TOKENIZE_CHARS)]
    model: Name | None = None
    add_special: bool | None = None
    parse_special: bool | None = None


class TokenInfo(msgspec.Struct, frozen=True):
    """One token; ``start`` and ``end`` are character offsets into the text."""

    id: int
    token: str
    start: int
    end: int
    special: bool


class TokenizeAnswer(msgspec.Struct, frozen=True):
    """Ids, and each token with its place in the text."""

    count: int
    max_model_len: int
    ids: list[int]
    tokens: list[TokenInfo] | msgspec.Raw


class DetokenizeRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /detokenize``."""

    ids: Annotated[list[TokenId], Meta(max_length=limits.MAX_PROMPT_TOKENS)]
    model: Name | None = None
    skip_special: bool | None = None


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    """The text of the ids."""

    text: str


class Rendered(msgspec.Struct, frozen=True):
    """A prompt as the model would see it, without running it."""

    prompt: str
    ids: list[int]
    count: int


class RenderedList(msgspec.Struct, frozen=True, kw_only=True):
    """Rendered prompts of one call, in order."""

    data: list[Rendered]
    model: str
    object: str = "list"


class InstanceCard(msgspec.Struct, frozen=True, kw_only=True):
    """One of several engine processes of a model. ``state``: loading, serving, leaving, waiting (to start again) or gone.

    ``role``: what it takes (all, prefill, decode).
    """

    number: int
    state: str
    pid: int
    threads: int
    requests: int
    running: int
    waiting: int
    pages_free: int
    pages_total: int
    crashes: int
    role: str


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A served model. ``state``: cold, loading, hot (it answers at once), leaving or failed, and then ``error`` says why.

    ``max_model_len`` is known once the model's file has been looked at. ``memory_bytes``: what the plan gives it; 0: nothing.
    ``in_use``: requests that it answers or that wait for it. ``idle_seconds``: since the last one ended, while it is hot.

    The card of an adapter has a ``parent``, the model that it belongs to, and fields that a model's has not: ``generation`` (a new
    one for each content), ``rank`` (the largest of its ``modules``) and ``bytes`` of pages. Its ``state``: waiting (for its model,
    or to be checked), registered (on disk), loading, resident (in pages), pinned (in use, or for good), failed or removed.
    ``root``: its folder below ``--adapter-dir``.
    """

    id: str
    created: int
    owned_by: str = "headrace"
    object: str = "model"
    root: str
    parent: str | None = None
    max_model_len: int | None
    state: str
    error: str | None = None
    pinned: bool = False
    in_use: int = 0
    idle_seconds: float | None = None
    memory_bytes: int = 0
    generation: int | msgspec.UnsetType = msgspec.UNSET
    rank: int | msgspec.UnsetType = msgspec.UNSET
    modules: list[str] | msgspec.UnsetType = msgspec.UNSET
    bytes: int | msgspec.UnsetType = msgspec.UNSET
    instances: list[InstanceCard] | msgspec.UnsetType = msgspec.UNSET


class LoadRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /models/load``. ``keep_alive``: seconds without a request after which it may leave; -1: never."""

    model: Name
    keep_alive: KeepAlive | None = None


class UnloadRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /models/unload``."""

    model: Name


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All served models."""

    data: list[ModelCard]
    object: str = "list"
