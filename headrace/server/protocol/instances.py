"""Bodies about the engine processes of a model: their roles, taking them out of use and back into it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from headrace.server.protocol.common import Body, Name
from headrace.server.protocol.tokens import InstanceCard

Number = Annotated[int, Meta(ge=0, le=2**16)]
RoleName = Annotated[str, Meta(min_length=1, max_length=16)]


class RolesRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /instances/roles``. ``roles``: by number of the instance; those left out keep theirs.

    ``model``: left out, the first one.
    """

    roles: Annotated[dict[Number, RoleName], Meta(min_length=1, max_length=64)]
    model: Name | None = None


class DrainRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /instances/drain``. ``stop``: end its process when it is empty."""

    instance: Number
    stop: bool | None = None
    model: Name | None = None


class UndrainRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /instances/undrain``."""

    instance: Number
    model: Name | None = None


class InstanceQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What may stand behind ``GET /instances``."""

    model: Name | None = None


class InstanceList(msgspec.Struct, frozen=True, kw_only=True):
    """The engine processes of one model, in order."""

    model: str
    data: list[InstanceCard]
    object: str = "list"
