"""One engine, or several as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headrace.engine.client import EngineClient
from headrace.errors import HeadraceError
from headrace.placement.joining import Joining
from headrace.placement.roles import Role
from headrace.placement.scaling import ScalingRule

EngineMaker = Callable[[Callable[[HeadraceError], None]], EngineClient]
"""Makes what serves one model; it is told whom to tell of its death."""


def engine_maker(
    roles: tuple[Role, ...],
    client: type[EngineClient] = EngineClient,
    joining: Joining | None = None,
    scaling: ScalingRule | None = None,
) -> EngineMaker:
    """For an engine process of a model for each role, here or where ``joining`` says that they come from.

    With ``scaling`` fewer of them run while the load is low.
    """
    if len(roles) == 1 and joining is None:
        return client
    from headrace.instances.group import GroupOptions, InstanceGroup

    return partial(InstanceGroup, GroupOptions(len(roles), roles=roles, joining=joining, scaling=scaling), client=client)
