"""One engine, or several as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headrace.engine.client import EngineClient
from headrace.errors import HeadraceError
from headrace.placement.roles import Role

EngineMaker = Callable[[Callable[[HeadraceError], None]], EngineClient]
"""Makes what serves one model; it is told whom to tell of its death."""


def engine_maker(roles: tuple[Role, ...], client: type[EngineClient] = EngineClient) -> EngineMaker:
    """For an engine process of a model for each role."""
    if len(roles) == 1:
        return client
    from headrace.instances.group import GroupOptions, InstanceGroup

    return partial(InstanceGroup, GroupOptions(len(roles), roles=roles), client=client)
