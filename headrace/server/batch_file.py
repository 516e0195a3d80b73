"""A batch's files: the lines that are asked for, checked before anything runs, and the journals of what is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from headrace.errors import HeadraceError
from headrace.server.protocol.batches import BatchError, BatchLine, BatchUsage, CountedUsage, InputDetails, Outlined
from headrace.server.protocol.decode import decode_body
from headrace.server.protocol.scan import JsonScan
from headrace.server.storage.disk import full_disk_refused

MOST_LINES = 50_000
MOST_LINE_BYTES = 1 << 20
_MOST_ERRORS = 100
_LINE_WORK = 20_000


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the lines that are not blank, numbered from 1. A line that is too long comes cut to one byte too many."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_LINE_BYTES + 1):
            number += 1
            cut = line
            while len(cut) > MOST_LINE_BYTES and not cut.endswith(b"\n"):
                cut = file.readline(MOST_LINE_BYTES + 1)
            if line.strip():
                yield number, line


def parsed(line: bytes, endpoint: str) -> BatchLine:
    """A line as a struct. Raises what :func:`decode_body` raises, or ``invalid_value``."""
    if len(line) > MOST_LINE_BYTES:
        raise HeadraceError("invalid_value", f"The line has more than {MOST_LINE_BYTES:,} bytes.")
    JsonScan(max_depth=64).feed(line)
    found = decode_body(line, BatchLine)
    if found.url != endpoint:
        raise HeadraceError("invalid_value", f"'url' must be the batch's endpoint, {endpoint}.", param="url")
    return found


@dataclass(slots=True)
class Survey:
    """What a look over a batch's file found."""

    total: int = 0
    errors: list[BatchError] = field(default_factory=list)

    def wrong(self, error: HeadraceError, line: int | None) -> None:
        """Note one error."""
        self.errors.append(BatchError(error.code, error.message, line, error.param))


def survey(path: Path, endpoint: str) -> Survey:
    """Check every line's form, and that no ``custom_id`` comes twice. Blocks; stops at the hundredth error."""
    found = Survey()
    seen: dict[str, int] = {}
    for number, line in lines_of(path):
        found.total += 1
        try:
            if found.total > MOST_LINES:
                raise HeadraceError("invalid_value", f"The file has more than {MOST_LINES:,} lines.")
            custom = parsed(line, endpoint).custom_id
            if custom in seen:
                raise HeadraceError("invalid_value", f"'custom_id' is that of line {seen[custom]} too.", param="custom_id")
            seen[custom] = number
        except HeadraceError as error:
            found.wrong(error, number)
            if len(found.errors) >= _MOST_ERRORS or found.total > MOST_LINES:
                return found
    if not found.total:
        found.wrong(HeadraceError("invalid_value", "The file has no lines."), None)
    return found


class Journal:
    """A file of results that only grows, line by line. Blocks; a line that a crash or a full disk cut short is taken off again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self.usage = BatchUsage()
        self._file = open(path, "ab", buffering=0, opener=_private)  # noqa: SIM115  closed by close()
        self._size = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._note(line)
                self._size += len(line)
        self._file.truncate(self._size)

    def append(self, line: bytes) -> None:
        """Add a result. Raises ``storage_full``; nothing of it is there then."""
        try:
            with full_disk_refused():
                view = memoryview(line)
                while view:
                    view = view[self._file.write(view) :]
        except BaseException:
            self._file.truncate(self._size)
            raise
        self._size += len(line)
        self._note(line)

    def _note(self, line: bytes) -> None:
        known = msgspec.json.decode(line, type=Outlined)
        self.done.add(known.custom_id)
        usage = known.response.body.usage if known.response is not None else None
        if usage is not None:
            self.usage = _added(self.usage, usage)

    def close(self) -> None:
        """End it, on the disk for good."""
        os.fsync(self._file.fileno())
        self._file.close()


def _added(usage: BatchUsage, answer: CountedUsage) -> BatchUsage:
    prompt, total, cached = answer.prompt_tokens, answer.total_tokens, answer.prompt_tokens_details
    details = InputDetails(usage.input_tokens_details.cached_tokens + (cached.cached_tokens if cached is not None else 0))
    return BatchUsage(
        usage.input_tokens + prompt, usage.output_tokens + total - prompt, usage.total_tokens + total, input_tokens_details=details
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
