"""Arguments of one verb, declared as a settings class: flags only, no file and no environment."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from headrace.cli.flags import flag, given
from headrace.settings.declaration import options_of
from headrace.settings.sources import Sources, merge


def arguments(kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one flag for every option of ``kind``; it gets the built object as its first
    argument, before those of decorators further out."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        declared = [option for option in options_of(kind) if option.public]

        @functools.wraps(function)
        def command(*outer: Any, **values: Any) -> Any:
            flags = given({option.name: values.pop(option.name) for option in declared})
            return function(merge([kind], Sources(flags, {})).of(kind), *outer, **values)

        wrapped: Callable[..., Any] = command
        for option in reversed(declared):
            wrapped = flag(option)(wrapped)
        return wrapped

    return decorate
