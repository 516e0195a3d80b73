"""Where values come from: defaults, then a YAML file, then the environment, then flags; the origin of each is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from headrace.errors import HeadraceError
from headrace.settings.declaration import Option, check_value, options_of
from headrace.settings.nearest import suggestion

CONFIG_VARIABLE = "HEADRACE_CONFIG"
_OTHER_VARIABLES = (CONFIG_VARIABLE, "HEADRACE_CPU_WITHOUT", "HEADRACE_INSTANCES_KEY_FILE")  # no options; the second: csrc/cpu.cpp
_PREFIX = "HEADRACE_"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")

SettingsType = TypeVar("SettingsType")


@dataclass(frozen=True, slots=True)
class Origin:
    """A value and the place it came from, such as ``default``, ``headrace.yaml``, ``HEADRACE_PORT`` or ``--port``."""

    option: Option
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Effective:
    """The merged settings: one object per declaring class, and the origin of every value."""

    settings: Mapping[type, Any]
    origins: tuple[Origin, ...]

    def of(self, kind: type[SettingsType]) -> SettingsType:
        """The merged object of one settings class."""
        found = self.settings[kind]
        assert isinstance(found, kind)
        return found


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that may set an option: flags (already given by name), the process environment, a YAML file."""

    flags: Mapping[str, Any]
    environment: Mapping[str, str]
    file: Path | None = None


def merge(kinds: Iterable[type], sources: Sources) -> Effective:
    """Merge all sources for these settings classes.

    Raises ``invalid_setting`` for an unknown key, variable or flag (with the nearest valid name), for a value that its
    declaration refuses (with the place it came from), and for a file that can't be read.
    """
    kinds = tuple(kinds)
    options = public_options(kinds)
    file = sources.file
    if file is None and sources.environment.get(CONFIG_VARIABLE):
        file = Path(sources.environment[CONFIG_VARIABLE])
    values: dict[str, Origin] = {name: Origin(declared, declared.default, "default") for name, declared in options.items()}
    layers: list[Iterable[tuple[str, str, Any]]] = []
    if file is not None:
        layers.append(_from_file(file, options))
    layers.append(_from_environment(sources.environment, options))
    layers.append(_from_flags(sources.flags, options))
    for layer in layers:
        for name, source, value in layer:
            _check(options[name], value, source)
            values[name] = Origin(options[name], value, source)
    built = {kind: kind(**{o.name: values[o.name].value for o in options_of(kind) if o.public}) for kind in kinds}
    return Effective(built, tuple(values.values()))


def public_options(kinds: Iterable[type]) -> dict[str, Option]:
    """All public options of these classes by name. Raises ``TypeError`` when two classes declare one name."""
    found: dict[str, Option] = {}
    for kind in kinds:
        for declared in options_of(kind):
            if declared.public:
                if declared.name in found:
                    raise TypeError(f"{kind.__name__}.{declared.name}: another settings class has an option of this name")
                found[declared.name] = declared
    return found


def parse_text(declared: Option, text: str) -> Any:
    """A value written as text (environment, flag): ``none`` for optional ones, commas between elements of lists.

    Raises ``invalid_setting`` when the text is not a value of the option's type.
    """
    if declared.optional and text.strip().lower() == "none":
        return None
    if declared.many:
        return tuple(_scalar(declared, part.strip()) for part in text.split(",") if part.strip())
    return _scalar(declared, text.strip())


def _scalar(declared: Option, text: str) -> Any:
    if declared.type is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise HeadraceError("invalid_setting", f"{declared.name} must be true or false, not '{text}'", param=declared.name)
    convert: Callable[[str], Any] = declared.type
    try:
        return convert(text)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}[declared.type]
        raise HeadraceError("invalid_setting", f"{declared.name} must be {kind}, not '{text}'", param=declared.name) from None


def _check(declared: Option, value: Any, source: str) -> None:
    try:
        check_value(declared, value)
    except HeadraceError as error:
        raise _at(source, error) from None


def _at(source: str, error: HeadraceError) -> HeadraceError:
    return HeadraceError(error.code, f"{source}: {error.message}", param=error.param)


def _from_flags(flags: Mapping[str, Any], options: Mapping[str, Option]) -> Iterable[tuple[str, str, Any]]:
    for name, value in flags.items():
        if name not in options:
            raise _unknown("option", "--" + name.replace("_", "-"), [o.flag for o in options.values()], name)
        source = options[name].flag
        yield name, source, _parsed(options[name], value, source) if isinstance(value, str) else value


def _from_environment(environment: Mapping[str, str], options: Mapping[str, Option]) -> Iterable[tuple[str, str, Any]]:
    by_variable = {declared.environment: declared for declared in options.values()}
    for variable, text in environment.items():
        if not variable.startswith(_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if variable not in by_variable:
            raise _unknown("environment variable", variable, by_variable, variable)
        yield by_variable[variable].name, variable, _parsed(by_variable[variable], text, variable)


def _parsed(declared: Option, text: str, source: str) -> Any:
    try:
        return parse_text(declared, text)
    except HeadraceError as error:
        raise _at(source, error) from None


def _from_file(file: Path, options: Mapping[str, Option]) -> Iterable[tuple[str, str, Any]]:
    for name, value in _read_yaml(file).items():
        if name not in options:
            raise _at(file.name, _unknown("key", str(name), options, str(name)))
        yield name, file.name, _listed(value, options[name]) if options[name].many else value


def _listed(value: Any, declared: Option) -> Any:
    """The value of a list option: a list, or one element that stands for a list of it. A whole number may stand for its text."""
    elements = value if isinstance(value, list) else [value] if isinstance(value, (str, int, float)) else None
    if elements is None:
        return value
    return tuple(str(element) if type(element) is int and declared.type is str else element for element in elements)


def _unknown(what: str, shown: str, known: Iterable[str], param: str) -> HeadraceError:
    return HeadraceError("invalid_setting", f"unknown {what} '{shown}'{suggestion(shown, known)}", param=param)


def _read_yaml(file: Path) -> dict[Any, Any]:
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        """A safe loader that refuses a key given twice instead of keeping the last one."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        repeated = next((key for position, key in enumerate(keys) if key in keys[:position]), None)
        if repeated is not None:
            raise HeadraceError("invalid_setting", f"{file.name}: key '{repeated}' is given twice", param=str(repeated))
        return loader.construct_mapping(node, deep=True)

    UniqueKeys.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=UniqueKeys)
    except OSError as error:
        raise HeadraceError("invalid_setting", f"can't read the config file {file}: {error.strerror}", param="config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise HeadraceError("invalid_setting", f"{file.name} is not valid YAML: {reason}", param="config") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise HeadraceError("invalid_setting", f"{file.name} must hold 'option: value' lines", param="config")
    return content
