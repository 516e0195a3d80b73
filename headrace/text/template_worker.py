"""The process that renders one chat template: sandboxed jinja2, little memory, no files, killed when it is late.

A template comes with a model file and is not trusted. It runs here, in a process with an empty environment, a memory
limit and no right to write files, and the parent (:mod:`headrace.text.chat_template`) ends it after the time limit.
Frames on stdin and stdout are a 4-byte little-endian length and JSON.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from datetime import datetime
from typing import Any, BinaryIO

import msgspec
from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 768 * 1024 * 1024
MAX_FRAME_BYTES = 64 * 1024 * 1024


class Reply(msgspec.Struct, omit_defaults=True):
    """``text`` is the rendered prompt, ``variables`` the names a loaded template refers to, ``error`` why there is neither."""

    text: str = ""
    variables: list[str] = []
    error: str = ""


class Call(msgspec.Struct, omit_defaults=True):
    """Load ``source``, or (without it) render the loaded template with ``variables`` into at most ``limit`` characters."""

    source: str | None = None
    variables: dict[str, Any] = {}
    nonce: str = ""
    limit: int = 0


class TemplateRefusal(Exception):
    """Raised by a template itself, through ``raise_exception``."""


class GenerationExtension(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training masks; for a prompt it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's own body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class StrictSandbox(ImmutableSandboxedEnvironment):
    """Refuses an unsafe attribute at once, where jinja2 would print nothing until it is used."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Never returns."""
        raise SecurityError(f"the attribute {attribute!r} may not be used")


class Renderer:
    """Holds the loaded template."""

    def __init__(self) -> None:
        self._nonce = ""
        self._environment = StrictSandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=[GenerationExtension, LoopControlExtension],
        )
        self._environment.filters["tojson"] = self._to_json
        self._environment.globals["raise_exception"] = _refuse
        self._environment.globals["strftime_now"] = _now
        self._template = self._environment.from_string("")

    def answer(self, call: Call) -> Reply:
        """Load or render; everything a template can raise becomes an ``error`` without paths or tracebacks."""
        try:
            if call.source is not None:
                self._template = self._environment.from_string(call.source)
                return Reply(variables=sorted(find_undeclared_variables(self._environment.parse(call.source))))
            self._nonce = call.nonce
            return self._render(call)
        except TemplateRefusal as error:
            return Reply(error=f"the chat template refused: {str(error)[:300]}")
        except RecursionError:
            return Reply(error="the chat template nests too deeply")
        except MemoryError:
            return Reply(error="the chat template needs too much memory")
        except TemplateError as error:
            return Reply(error=f"the chat template failed ({type(error).__name__}): {(error.message or '')[:300]}")
        except Exception as error:  # templates can raise anything
            return Reply(error=f"the chat template failed ({type(error).__name__})")

    def _render(self, call: Call) -> Reply:
        pieces: list[str] = []
        length = 0
        for piece in self._template.generate(call.variables):
            length += len(piece)
            if length > call.limit:
                return Reply(error=f"the rendered prompt is longer than {call.limit} characters")
            pieces.append(piece)
        return Reply(text="".join(pieces))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as chat templates expect it: no HTML escapes. The nonce stays itself even where ASCII is asked for."""
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        if not ensure_ascii:
            return text
        return re.sub(r"[^\x00-\x7f]", lambda match: match[0] if match[0] == self._nonce else json.dumps(match[0])[1:-1], text)


def _refuse(message: str) -> str:
    raise TemplateRefusal(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _limit_process() -> None:
    """Bound memory and forbid writing files, where the system can."""
    try:
        import resource
    except ImportError:  # not a POSIX system: the parent's time limit and the sandbox remain
        return
    for kind, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer frames until the parent closes its end."""
    renderer = Renderer()
    decoder, encoder = msgspec.json.Decoder(Call), msgspec.json.Encoder()
    while len(head := source.read(4)) == 4:
        (size,) = struct.unpack("<I", head)
        if size > MAX_FRAME_BYTES:
            return
        reply = renderer.answer(decoder.decode(source.read(size)))
        try:
            data = encoder.encode(reply)
        except (UnicodeEncodeError, MemoryError):
            data = encoder.encode(Reply(error="the chat template made text that is not valid Unicode"))
        sink.write(struct.pack("<I", len(data)) + data)
        sink.flush()


if __name__ == "__main__":
    _limit_process()
    serve(sys.stdin.buffer, sys.stdout.buffer)
