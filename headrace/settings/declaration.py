"""Options declared once: a dataclass field with its unit, bounds, choices and help, checked whenever a value is made.

A room declares its options as a frozen slots dataclass and checks them at construction::

    @dataclass(frozen=True, slots=True)
    class PoolSettings:
        \"\"\"Options of the page pool.\"\"\"

        pool_mib: int = option(512, unit="MiB", minimum=16, maximum=1_048_576, help="Memory for KV pages.")

        def __post_init__(self) -> None:
            validate(self)

Flags, YAML keys, environment variables and the docs table are all made from these fields (:mod:`headrace.settings.sources`).
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headrace.errors import HeadraceError
from headrace.settings.nearest import suggestion

_METADATA_KEY = "headrace.option"
_SCALARS: tuple[type, ...] = (bool, int, float, str)


@dataclass(frozen=True, slots=True)
class _Rules:
    unit: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    help: str
    public: bool


@dataclass(frozen=True, slots=True)
class Option:
    """One declared option as seen from outside.

    ``type`` is bool, int, float or str; ``optional`` allows ``None``; ``many`` means a tuple of ``type``.
    """

    name: str
    type: type
    optional: bool
    many: bool
    default: Any
    unit: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    help: str
    public: bool

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> str:
        """The environment variable."""
        return "HEADRACE_" + self.name.upper()

    @property
    def bounds(self) -> str:
        """Bounds or choices for people, empty when there are none."""
        if self.choices:
            return ", ".join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:,} … {self.maximum:,}"
        if self.minimum is not None:
            return f"≥ {self.minimum:,}"
        return f"≤ {self.maximum:,}" if self.maximum is not None else ""


def option(  # noqa: PLR0913 - keyword-only description of one field; a dataclass around it would say everything twice
    default: Any,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    help: str = "",
    public: bool = True,
) -> Any:
    """Declare one option as a dataclass field.

    ``minimum`` and ``maximum`` are inclusive and apply to numbers (each one, for tuples); ``choices`` to strings.
    ``public=False`` keeps it out of flags, files, environment and docs: a value that only code sets.
    """
    rules = _Rules(unit, minimum, maximum, tuple(choices or ()), help, public)
    return dataclasses.field(default=default, metadata={_METADATA_KEY: rules})


def options_of(settings: type) -> tuple[Option, ...]:
    """The options that a settings class declares, in order. Raises ``TypeError`` for a field of an unusable type."""
    return tuple(_options(settings))


def _options(settings: type) -> Iterator[Option]:
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        rules = field.metadata.get(_METADATA_KEY)
        if not isinstance(rules, _Rules):
            raise TypeError(f"{settings.__name__}.{field.name} is not declared with option()")
        kind, optional, many = _shape(hints[field.name], f"{settings.__name__}.{field.name}")
        yield Option(
            name=field.name, type=kind, optional=optional, many=many, default=field.default, unit=rules.unit,
            minimum=rules.minimum, maximum=rules.maximum, choices=rules.choices, help=rules.help, public=rules.public,
        )  # fmt: skip


def _shape(hint: Any, where: str) -> tuple[type, bool, bool]:
    """(scalar type, may be None, is a tuple of it) of a type hint."""
    optional = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        arguments = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        optional = len(arguments) < len(typing.get_args(hint))
        hint = arguments[0] if len(arguments) == 1 else hint
    if typing.get_origin(hint) is tuple and len(typing.get_args(hint)) == 2 and typing.get_args(hint)[1] is Ellipsis:
        return typing.get_args(hint)[0], optional, True
    if typing.get_origin(hint) is typing.Literal:
        return str, optional, False
    if hint not in _SCALARS:
        raise TypeError(f"{where}: options are bool, int, float, str, a tuple of one of them, or one of them or None")
    return hint, optional, False


def validate(settings: Any) -> None:
    """Check every field of a settings object; call it from ``__post_init__``.

    Raises :class:`HeadraceError` ``invalid_setting`` naming the field, the limit and, for choices, the nearest valid one.
    """
    for declared in options_of(type(settings)):
        check_value(declared, getattr(settings, declared.name))


def check_value(declared: Option, value: Any) -> None:
    """Check one value against its declaration (see :func:`validate`)."""
    if value is None:
        if not declared.optional:
            raise _refusal(declared, "needs a value")
        return
    if declared.many:
        if not isinstance(value, tuple):
            raise _refusal(declared, f"must be a list of {declared.type.__name__}, not {type(value).__name__}")
        for element in value:
            _check_scalar(declared, element)
        return
    _check_scalar(declared, value)


def _check_scalar(declared: Option, value: Any) -> None:
    numeric_promotion = declared.type is float and type(value) is int
    if type(value) is not declared.type and not numeric_promotion:
        raise _refusal(declared, f"must be {declared.type.__name__}, not {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _refusal(declared, f"must be a finite number, not {value}")
    if declared.choices and value not in declared.choices:
        names = ", ".join(declared.choices)
        raise _refusal(declared, f"must be one of {names}, not '{value}'{suggestion(str(value), declared.choices)}")
    unit = f" {declared.unit}" if declared.unit else ""
    if declared.minimum is not None and value < declared.minimum:
        raise _refusal(declared, f"must be at least {declared.minimum:,}{unit}, not {value:,}")
    if declared.maximum is not None and value > declared.maximum:
        raise _refusal(declared, f"must be at most {declared.maximum:,}{unit}, not {value:,}")


def _refusal(declared: Option, problem: str) -> HeadraceError:
    return HeadraceError("invalid_setting", f"{declared.name} {problem}", param=declared.name)
