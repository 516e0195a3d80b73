"""Reads tool calls out of streamed text: content goes on as content, calls become name and argument pieces."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from headrace.text.json_scan import ObjectScanner
from headrace.text.tool_dialects import Dialect


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of call ``index``. ``id`` and ``name`` come once, in its first piece; ``arguments`` pieces join to JSON."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ToolDelta(NamedTuple):
    """What a push releases: text for ``content``, and pieces of calls in order."""

    content: str = ""
    calls: tuple[CallDelta, ...] = ()


class ToolCall(NamedTuple):
    """A whole call; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


class ParsedOutput(NamedTuple):
    """A whole output read: ``content`` ``None`` when there is none beside the calls."""

    content: str | None
    calls: tuple[ToolCall, ...]


def new_call_id() -> str:
    """A fresh call id: ``call_`` and 24 hexadecimal digits."""
    return f"call_{secrets.token_hex(12)}"


_CONTENT, _CALL, _BETWEEN = range(3)


class ToolCallStream:
    """One choice's output in one dialect, read as it comes.

    The pieces do not depend on how the text was divided: joined they equal :func:`parse_tool_calls` of the whole. Text
    that begins like a call and turns out not to be one before its name is known goes on as content; a call that
    is cut off keeps the arguments that were already sent.
    """

    def __init__(self, dialect: Dialect, *, make_id: Callable[[], str] = new_call_id) -> None:
        self._dialect = dialect
        self._make_id = make_id
        self._state = _CONTENT if dialect.trigger else _BETWEEN
        self._held = ""
        self._raw = ""
        self._scanner = ObjectScanner("name", dialect.arguments_key)
        self._open = False
        self._calls = 0
        self._content: list[str] = []
        self._pieces: list[CallDelta] = []

    @property
    def calls(self) -> int:
        """Calls begun so far; more than none makes the finish reason ``tool_calls``."""
        return self._calls

    def push(self, text: str) -> ToolDelta:
        """Read more text."""
        self._held += text
        while self._held and self._advance():
            continue
        return self._release()

    def finish(self) -> ToolDelta:
        """Read the end: what was held for the start of a call becomes content."""
        if self._state == _CALL and not self._open:
            self._content.append(self._raw)
        if self._state == _CONTENT or (self._state == _BETWEEN and not self._calls):
            self._content.append(self._raw * (self._state == _BETWEEN) + self._held)
        self._held = self._raw = ""
        return self._release()

    def _release(self) -> ToolDelta:
        content, pieces = "".join(self._content), tuple(self._pieces)
        self._content, self._pieces = [], []
        return ToolDelta(content, pieces)

    def _advance(self) -> bool:
        """Read some of what is held; False when more text is needed."""
        if self._state == _CONTENT:
            return self._read_content()
        if self._state == _CALL:
            return self._read_call()
        return self._read_between()

    def _read_content(self) -> bool:
        trigger = self._dialect.trigger
        if not trigger:
            self._content.append(self._held)
            self._held = ""
            return False
        at = self._held.find(trigger)
        if at >= 0:
            self._content.append(self._held[:at])
            self._held, self._raw = self._held[at + len(trigger) :], trigger
            self._state = _BETWEEN
            return True
        keep = _possible_start(self._held, trigger)
        self._content.append(self._held[:keep])
        self._held = self._held[keep:]
        return False

    def _read_between(self) -> bool:
        """Skip what the dialect puts around objects; the next brace begins a call, other text ends the calls."""
        filler = self._filler.match(self._held)
        end = filler.end() if filler else 0
        self._raw += self._held[:end]
        self._held = self._held[end:]
        if not self._held:
            return False
        if self._held[0] == "{":
            self._state = _CALL
            self._scanner = ObjectScanner("name", self._dialect.arguments_key)
            self._open = False
            return True
        if any(mark.startswith(self._held) for mark in self._marks):
            return False
        for mark in self._marks:
            if self._held.startswith(mark):
                self._raw = mark if mark == self._dialect.trigger and self._calls else self._raw + mark
                self._held = self._held[len(mark) :]
                return True
        # Not a call after all. What stood before it is content only if it did not belong to a call.
        if not self._calls or self._raw.startswith(self._dialect.trigger or "\0"):
            self._content.append(self._raw)
        self._raw = ""
        self._state = _CONTENT
        return True

    @property
    def _marks(self) -> tuple[str, ...]:
        """The dialect's words that may stand between objects."""
        words = (
            self._dialect.trigger,
            self._dialect.close.strip(),
            *(mark for mark in self._dialect.marks if mark.startswith("<|")),
        )
        return tuple(word for word in words if word)

    @property
    def _filler(self) -> re.Pattern[str]:
        return re.compile(r"[\s,;\[\]]*" if self._dialect.begin or self._dialect.between == "; " else r"\s*")

    def _read_call(self) -> bool:
        used = self._scanner.feed(self._held)
        self._raw += self._held[:used]
        self._held = self._held[used:]
        scanner = self._scanner
        if scanner.failed and not self._open:
            self._content.append(self._raw)
            self._raw = ""
            self._state = _CONTENT
            return True
        if not self._open and scanner.name is not None and (scanner.has_arguments or scanner.done):
            self._pieces.append(CallDelta(self._calls, self._make_id(), scanner.name))
            self._open = True
            self._calls += 1
        arguments = scanner.take() if self._open else ""
        if arguments:
            self._pieces.append(CallDelta(self._calls - 1, arguments=arguments))
        if scanner.done or scanner.failed:
            self._end_call()
            return True
        return False

    def _end_call(self) -> None:
        if self._open and not self._scanner.has_arguments:
            self._pieces.append(CallDelta(self._calls - 1, arguments="{}"))
        if not self._open:
            self._content.append(self._raw)
        self._raw = ""
        self._state = _BETWEEN if self._open else _CONTENT


def parse_tool_calls(dialect: Dialect, text: str, *, make_id: Callable[[], str] = new_call_id) -> ParsedOutput:
    """Read a whole output at once."""
    stream = ToolCallStream(dialect, make_id=make_id)
    content: list[str] = []
    calls: list[list[str]] = []
    for delta in (stream.push(text), stream.finish()):
        content.append(delta.content)
        for piece in delta.calls:
            if piece.id is not None:
                calls.append([piece.id, piece.name or "", ""])
            calls[piece.index][2] += piece.arguments
    return ParsedOutput("".join(content) or None, tuple(ToolCall(*call) for call in calls))


def _possible_start(text: str, trigger: str) -> int:
    """Where a tail of ``text`` that may become ``trigger`` begins."""
    for start in range(max(0, len(text) - len(trigger) + 1), len(text)):
        if trigger.startswith(text[start:]):
            return start
    return len(text)
