"""Lines of a training file: what they must look like, and what of them is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from headrace.errors import HeadraceError
from headrace.server.protocol import limits
from headrace.server.protocol.common import Body
from headrace.server.protocol.decode import decode_body
from headrace.server.protocol.scan import JsonScan
from headrace.text.chat_template import ChatTemplate
from headrace.text.lessons import Lesson, lesson
from headrace.text.tokenizer import Tokenizer

MOST_LINE_BYTES = 1 << 20
Line = TypeVar("Line", bound=msgspec.Struct)
_NO_TOOLS = "calls of tools can't be learnt here; give their text as content"


class TextPart(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A part of a content."""

    text: str


class LineMessage(Body, frozen=True, kw_only=True):
    """One message. ``weight`` 0 of an answer: it is read and not learnt."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Meta(max_length=limits.MAX_CONTENT_PARTS)]
    weight: Literal[0, 1] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


Messages = Annotated[list[LineMessage], Meta(min_length=1, max_length=limits.MAX_MESSAGES)]
_UNSUPPORTED = dict.fromkeys(("tools", "tool_calls", "functions", "function_call", "parallel_tool_calls"), _NO_TOOLS)


class SupervisedLine(Body, frozen=True, kw_only=True):
    """A conversation whose answers are learnt."""

    unsupported: ClassVar[dict[str, str]] = _UNSUPPORTED

    messages: Messages
    tools: None = None
    functions: None = None
    parallel_tool_calls: None = None


class PreferenceInput(Body, frozen=True, kw_only=True):
    """What both answers answer."""

    messages: Messages
    tools: None = None
    parallel_tool_calls: None = None


class PreferenceLine(Body, frozen=True, kw_only=True):
    """A conversation with two answers, of which one is preferred."""

    unsupported: ClassVar[dict[str, str]] = _UNSUPPORTED

    input: PreferenceInput
    preferred_output: Annotated[list[LineMessage], Meta(min_length=1, max_length=1)]
    non_preferred_output: Annotated[list[LineMessage], Meta(min_length=1, max_length=1)]


class LineReader:
    """Turns lines into lessons for one model. ``most_tokens``: of a lesson. Blocks; not for two threads at a time."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, most_tokens: int) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._most_tokens = most_tokens

    def supervised(self, line: bytes) -> list[Lesson]:
        """The one lesson of a line. Raises HeadraceError with the field at fault."""
        return [self._lesson(_decoded(line, SupervisedLine).messages, "messages")]

    def preference(self, line: bytes) -> list[Lesson]:
        """The lessons of the preferred answer and of the other one. Raises HeadraceError with the field at fault."""
        found = _decoded(line, PreferenceLine)
        made = []
        for name, output in (("preferred_output", found.preferred_output), ("non_preferred_output", found.non_preferred_output)):
            if output[0].role != "assistant":
                raise _wrong(f"'{name}[0].role' must be 'assistant', not '{output[0].role}'.", f"{name}[0].role")
            before = [_read_only(message) for message in found.input.messages]
            made.append(self._lesson([*before, output[0]], name))
        return made

    def _lesson(self, messages: Sequence[LineMessage], param: str) -> Lesson:
        answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
        if not answers:
            raise _wrong(f"'{param}' has no message of the role 'assistant', so that there is nothing to learn.", param)
        for place, message in enumerate(messages):
            if message.weight is not None and message.role != "assistant":
                raise _wrong("'weight' is for messages of the role 'assistant'.", f"{param}[{place}].weight")
            if message.role == "assistant" and not message.text.strip():
                raise _wrong(f"'{param}[{place}].content' is empty.", f"{param}[{place}].content")
        learnt = [place for place in answers if messages[place].weight != 0]
        if not learnt:
            raise _wrong(f"All answers of '{param}' have the weight 0, so that there is nothing to learn.", param)
        if answers[-1] != len(messages) - 1:
            raise _wrong(f"'{param}' must end with a message of the role 'assistant'.", f"{param}[{len(messages) - 1}].role")
        plain: list[dict[str, Any]] = [{"role": message.role, "content": message.text} for message in messages]
        made = lesson(self._template, self._tokenizer, plain, learnt)
        if len(made.tokens) > self._most_tokens:
            problem = f"The conversation has {len(made.tokens):,} tokens; at most {self._most_tokens:,} fit."
            raise HeadraceError("context_length_exceeded", problem, param=param)
        return made


def _decoded(line: bytes, kind: type[Line]) -> Line:
    if len(line) > MOST_LINE_BYTES:
        raise HeadraceError("invalid_value", f"The line has more than {MOST_LINE_BYTES:,} bytes.")
    JsonScan(max_depth=64).feed(line)
    return decode_body(line, kind)


def _read_only(message: LineMessage) -> LineMessage:
    """The same, not learnt: answers before the one that is compared."""
    return msgspec.structs.replace(message, weight=0) if message.role == "assistant" else message


def _wrong(message: str, param: str) -> HeadraceError:
    return HeadraceError("invalid_value", message, param=param)
