"""Bodies about adapters: bringing them into a server and taking them out."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from headrace.server.protocol.common import Body, Name

Generation = Annotated[int, Meta(ge=0, le=2**53)]


class LoadAdapterRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /load_lora_adapter``. ``lora_path``: absolute, or below an ``--adapter-dir``.

    ``expected_generation``: which generation has the name now and is replaced; 0 or left out: none may have it. ``pin``: keep it
    in memory. ``model``: the base; left out, the one that the adapter's file names, else the first.
    """

    lora_name: Name
    lora_path: Annotated[str, Meta(min_length=1, max_length=4096)]
    expected_generation: Generation | None = None
    pin: bool | None = None
    model: Name | None = None


class UnloadAdapterRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /unload_lora_adapter``. ``expected_generation``: refused when another one has the name."""

    lora_name: Name
    expected_generation: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    model: Name | None = None
