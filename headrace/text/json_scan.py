"""Reads one JSON object as it comes, and keeps the raw text of one member and the value of another."""

from __future__ import annotations

import json

_SPACE = " \t\r\n"
_KEY, _COLON, _VALUE, _COMMA, _DONE, _FAILED = range(6)


class ObjectScanner:
    """Fed with pieces of text that begin with ``{``.

    ``name`` is the string member ``name_key`` once it is complete; :meth:`take` gives the raw text of the member
    ``arguments_key``, which must be an object, as it grows. It looks at structure only: what is inside a value is not checked
    beyond brackets and strings.
    """

    __slots__ = (
        "_arguments_key",
        "_depth",
        "_escaped",
        "_fresh",
        "_in_string",
        "_key",
        "_name_key",
        "_state",
        "_token",
        "has_arguments",
        "name",
    )

    def __init__(self, name_key: str, arguments_key: str) -> None:
        self._name_key = name_key
        self._arguments_key = arguments_key
        self._state = _COMMA
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._token = ""
        self._key = ""
        self.name: str | None = None
        self.has_arguments = False
        self._fresh: list[str] = []

    @property
    def done(self) -> bool:
        """The object is closed."""
        return self._state == _DONE

    @property
    def failed(self) -> bool:
        """The text is not such an object."""
        return self._state == _FAILED

    def feed(self, text: str) -> int:
        """Read characters until the object ends or fails; how many were used."""
        for index, char in enumerate(text):
            self._step(char)
            if self._state >= _DONE:
                return index + 1
        return len(text)

    def take(self) -> str:
        """The part of the arguments' raw text that was not taken yet."""
        text = "".join(self._fresh)
        self._fresh.clear()
        return text

    def _step(self, char: str) -> None:
        if self._depth == 0:
            self._depth, self._state = 1, (_KEY if char == "{" else _FAILED)
        elif self._in_string:
            if self._depth == 1:
                self._token += char
            self._string_step(char)
        elif self._state == _VALUE and (self._depth > 1 or self._token):
            self._value_step(char)
        elif char not in _SPACE:
            self._structure_step(char)

    def _string_step(self, char: str) -> None:
        if self._state == _VALUE and self._key == self._arguments_key and self._depth > 1:
            self._fresh.append(char)
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            if self._depth == 1:
                self._end_string()

    def _end_string(self) -> None:
        try:
            value = json.loads(self._token)
        except ValueError:
            self._state = _FAILED
            return
        self._token = ""
        if self._state == _KEY:
            self._key, self._state = value, _COLON
            return
        if self._key == self._name_key:
            self.name = value
        self._state = _FAILED if self._key == self._arguments_key else _COMMA

    def _structure_step(self, char: str) -> None:
        """A character at depth 1, outside strings and values."""
        if char == '"' and self._state in (_KEY, _VALUE):
            self._in_string, self._token = True, char
        elif char == ":" and self._state == _COLON:
            self._state = _VALUE
        elif char == "," and self._state == _COMMA:
            self._state = _KEY
        elif char == "}" and (self._state == _COMMA or (self._state == _KEY and not self._key)):
            self._state = _DONE
        elif self._state == _VALUE and char not in "}],:":
            self._begin_value(char)
        else:
            self._state = _FAILED

    def _begin_value(self, char: str) -> None:
        wants_object, wants_string = self._key == self._arguments_key, self._key == self._name_key
        if wants_string or (wants_object and (char != "{" or self.has_arguments)):
            self._state = _FAILED
            return
        self._token = char
        if char in "{[":
            self._depth += 1
        if wants_object:
            self.has_arguments = True
            self._fresh.append(char)

    def _value_step(self, char: str) -> None:
        """Inside a value that is not a plain string at depth 1."""
        if self._depth == 1:
            if char in ",}" or char in _SPACE:
                self._token, self._state = "", _COMMA
                if char not in _SPACE:
                    self._structure_step(char)
            else:
                self._token += char
            return
        if self._key == self._arguments_key:
            self._fresh.append(char)
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth == 1:
                self._token, self._state = "", _COMMA
