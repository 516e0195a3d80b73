"""The settings of all rooms as flags, file and environment: no flag is written by hand twice."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from headrace.cli.flags import flag, given
from headrace.engine.settings import EngineSettings, ModelSettings
from headrace.scheduling.settings import SchedulingSettings
from headrace.server.settings import ServerSettings
from headrace.settings.sources import Sources, merge, public_options

SERVE_SETTINGS: tuple[type, ...] = (ServerSettings, ModelSettings, EngineSettings, SchedulingSettings)
LOCAL_SETTINGS: tuple[type, ...] = (ModelSettings, EngineSettings, SchedulingSettings)


def settings_options(*kinds: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command ``--config`` and one flag for every public option of these classes.

    The command gets the merged values as its first argument, an ``Effective`` over **all** settings classes, so that
    one file or environment serves every verb while only the flags that concern this verb are offered.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        declared = public_options(kinds)

        @functools.wraps(function)
        def command(*outer: Any, config: Path | None, **values: Any) -> Any:
            flags = given({name: values.pop(name) for name in declared})
            return function(merge(SERVE_SETTINGS, Sources(flags, os.environ, config)), *outer, **values)

        wrapped: Callable[..., Any] = command
        for option in reversed(list(declared.values())):
            wrapped = flag(option)(wrapped)
        path = click.Path(path_type=Path)
        return click.option("--config", type=path, help="YAML file with options, one 'name: value' a line.")(wrapped)

    return decorate
