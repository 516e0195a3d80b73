"""The strict decoder: bytes to a body struct, or one refusal that names the field and what it should have been."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from headrace.errors import HeadraceError
from headrace.server.protocol.common import UNSUPPORTED
from headrace.settings.nearest import suggestion

T = TypeVar("T", bound=msgspec.Struct)

_AT = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<path>\$.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"`([^`]*)`")
_BYTE = re.compile(r"\(byte (\d+)\)")
_LAST_KEY = re.compile(rb'"([A-Za-z_][A-Za-z0-9_]{0,63})"\s*:\s*\[?[^"\[\]{}]{0,80}$')
_LITERAL = re.compile(rb"-?(NaN|Infinity|nan|inf)")
_PARAM_CHARS = 128  # of a path that may hold a client's own field names
_SAFE_NAME = re.compile(r"[^\w.\-\[\]$ ]")


def decode_body(data: bytes, kind: type[T]) -> T:
    """Decode ``data`` as a ``kind``.

    Raises HeadraceError: ``invalid_json``, ``unknown_parameter`` (with the nearest valid name), ``missing_parameter``,
    ``unsupported_parameter`` or ``invalid_value``; ``param`` is a path such as ``messages[0].content``.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), kind) from None
    except msgspec.DecodeError as error:
        raise _malformed(data, str(error)) from None
    except UnicodeDecodeError:
        raise HeadraceError("invalid_json", "The body is not valid UTF-8.") from None
    except RecursionError:
        raise HeadraceError("invalid_value", "The body nests too deeply.") from None


def decode_query(pairs: Sequence[tuple[str, str]], kind: type[T]) -> T:
    """What stands behind a path as a ``kind``. Raises as :func:`decode_body`; a name that comes twice is refused."""
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            shown = _SAFE_NAME.sub("?", name)[:64]
            raise HeadraceError("invalid_value", f"'{shown}' comes twice.", param=shown)
        fields[name] = value
    return checked(fields, kind)


def checked(fields: dict[str, Any], kind: type[T]) -> T:
    """Fields that came as text, as a ``kind``. Raises as :func:`decode_body`."""
    try:
        return msgspec.convert(fields, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), kind) from None


def _refusal(message: str, kind: type[msgspec.Struct]) -> HeadraceError:
    match = _AT.match(message)
    what, path = (match["what"], match["path"]) if match else (message, None)
    param = _SAFE_NAME.sub("?", (path or "$").removeprefix("$").removeprefix("."))[:_PARAM_CHARS] or None
    field = _FIELD.search(what)
    name = field[1] if field else ""
    if what.startswith("Object contains unknown field"):
        return _unknown(name, param, kind)
    if what.startswith("Object missing required field"):
        full = _join(param, name)
        return HeadraceError("missing_parameter", f"Missing required parameter: '{full}'.", param=full)
    leaf = re.split(r"[.\[]", param)[0] if param else ""
    last = param.rsplit(".", 1)[-1] if param else ""
    for candidate in (leaf, last):
        if candidate in getattr(kind, "unsupported", UNSUPPORTED):
            reason = getattr(kind, "unsupported", UNSUPPORTED)[candidate]
            return HeadraceError("unsupported_parameter", f"'{param}' can't be honoured here: {reason}.", param=param)
    if param is None:
        return HeadraceError("invalid_value", f"The body must be a JSON object: {_plain(what)}.")
    return HeadraceError("invalid_value", f"Invalid value for '{param}': {_plain(what)}.", param=param)


def _plain(what: str) -> str:
    """msgspec's sentence without code marks, a client's own text cut short."""
    return what.replace("`", "")[:200]


def _join(param: str | None, name: str) -> str:
    return f"{param}.{name}" if param else name


def _unknown(name: str, param: str | None, kind: type[msgspec.Struct]) -> HeadraceError:
    shown = _SAFE_NAME.sub("?", name)[:64]
    full = _join(param, shown)
    known = known_fields(kind, param or "")
    return HeadraceError("unknown_parameter", f"Unknown parameter: '{full}'{suggestion(name[:64], known) or '.'}", param=full)


def known_fields(kind: type[msgspec.Struct], path: str) -> list[str]:
    """Field names that are valid at ``path`` inside a body of type ``kind``; of every alternative of a union."""
    here: list[Any] = [kind]
    for part in re.findall(r"[^.\[\]]+|\[[^\]]*\]", path):
        inner: list[Any] = []
        for candidate in here:
            inner += _elements(candidate) if part.startswith("[") else _fields_type(candidate, part)
        here = inner
    names: list[str] = []
    for candidate in here:
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            config = candidate.__struct_config__
            names += [config.tag_field] if config.tag_field else []
            names += list(candidate.__struct_fields__)
    return list(dict.fromkeys(names))


def _fields_type(candidate: Any, name: str) -> list[Any]:
    if not (isinstance(candidate, type) and issubclass(candidate, msgspec.Struct)):
        return []
    hints = typing.get_type_hints(candidate)
    return _alternatives(hints[name]) if name in hints else []


def _elements(candidate: Any) -> list[Any]:
    arguments = typing.get_args(candidate)
    return _alternatives(arguments[-1]) if arguments else []


def _alternatives(hint: Any) -> list[Any]:
    """The plain types of a hint, with unions opened and annotations taken off."""
    if typing.get_origin(hint) is typing.Annotated:
        return _alternatives(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [plain for argument in typing.get_args(hint) for plain in _alternatives(argument)]
    return [hint]


def _malformed(data: bytes, message: str) -> HeadraceError:
    byte = _BYTE.search(message)
    if byte is None:
        return HeadraceError("invalid_json", "The body is not valid JSON: it ends too soon or holds a broken string.")
    offset = int(byte[1])
    start = offset - 1 if offset and data[offset - 1 : offset] == b"-" else offset
    if _LITERAL.match(data, start):
        key = _LAST_KEY.search(data[max(0, start - 200) : start])
        if key:
            param = key[1].decode("ascii")
            return HeadraceError("invalid_value", f"Invalid value for '{param}': numbers must be finite.", param=param)
    return HeadraceError("invalid_json", f"The body is not valid JSON: unexpected character at byte {offset}.")
