"""Bodies and answers of tokenising, detokenising and rendering, and of the model list."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.common import Body, KeepAlive, Name, TokenId


class TokenizeRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /tokenize``.

    ``add_special_tokens``: the token that begins every prompt, where the model wants one, comes first. ``parse_special``: text
    like ``<|im_end|>`` becomes that special token; in a prompt that is sent as text it never does.
    """

    prompt: Annotated[str, Meta(max_length=limits.MAX_TOKENIZE_CHARS)]
    model: Name | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    return_offsets: bool | None = None


class TokenPlace(msgspec.Struct, frozen=True):
    """Where a token stands in the text, in characters, and whether it is a special one."""

    start: int
    end: int
    special: bool


class TokenizeAnswer(msgspec.Struct, frozen=True):
    """``tokens`` are ids; ``token_strs`` and ``offsets`` have an entry for each when they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | msgspec.Raw | None = None
    offsets: list[TokenPlace] | msgspec.Raw | None = None


class DetokenizeRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /detokenize``."""

    tokens: Annotated[list[TokenId], Meta(max_length=limits.MAX_PROMPT_TOKENS)]
    model: Name | None = None
    skip_special: bool | None = None


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    """The text of the ids."""

    prompt: str


class TokenizerQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What may stand behind ``/tokenizer_info``."""

    model: Name | None = None


class TokenizerInfo(msgspec.Struct, frozen=True):
    """What a client needs to use the model's tokenizer over HTTP; ``null`` where the model has no such token or template."""

    model: str
    vocab_size: int
    model_max_length: int
    add_bos_token: bool
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    special_tokens: list[str]
    chat_template: str | None


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
    """One of several engine processes of a model. ``state``: loading, serving, leaving (its requests move away), drained (it
    has none and takes none), waiting (to start again) or gone.

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
