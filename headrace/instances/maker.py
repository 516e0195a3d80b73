"""One engine, or several as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headrace.engine.client import EngineClient
from headrace.errors import HeadraceError
from headrace.placement.roles import check_roles

EngineMaker = Callable[[Callable[[HeadraceError], None]], EngineClient]
"""Makes what serves one model; it is told whom to tell of its death."""


def engine_maker(instances: int, client: type[EngineClient] = EngineClient, roles: tuple[str, ...] = ()) -> EngineMaker:
    """For so many engine processes a model, with these roles. Raises ``invalid_setting``."""
    checked = check_roles(roles, instances)
    if instances == 1:
        return client
    from headrace.instances.group import GroupOptions, InstanceGroup

    return partial(InstanceGroup, GroupOptions(instances, roles=checked), client=client)
