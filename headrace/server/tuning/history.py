"""What happened to a job, event by event, in a file that only grows."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Literal

import msgspec

from headrace.server.protocol.tuning import JobEvent
from headrace.server.storage.disk import Scribe, full_disk_refused

Data = dict[str, float | int | str | None]
Level = Literal["info", "warn", "error"]
COLUMNS = "step", "train_loss", "valid_loss", "epoch", "learning_rate", "gradient_norm", "tokens"
"""Of a job's result file."""


class History:
    """Events of one job. What a crash cut short is taken off when the file is next written to."""

    def __init__(self, path: Path, job_id: str, scribe: Scribe) -> None:
        self._path = path
        self._job = job_id.rpartition("-")[2][:16]
        self._scribe = scribe
        self._count: int | None = None

    async def note(self, message: str, *, level: Level = "info", data: Data | None = None) -> None:
        """Add an event; one with ``data`` is of the type ``metrics``. Raises ``storage_full``."""
        kind = "message" if data is None else "metrics"
        await self._scribe.do(lambda: self._append(message, level, kind, data))

    def _append(self, message: str, level: Level, kind: str, data: Data | None) -> None:
        if self._count is None:
            whole = self._lines()
            self._count = len(whole)
            if self._path.exists():
                with self._path.open("ab") as file:
                    file.truncate(sum(map(len, whole)))
        event = JobEvent(f"ftevent-{self._job}{self._count:08d}", int(time.time()), level, message, kind, data)
        with full_disk_refused(), self._path.open("ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")
        self._count += 1

    def _lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            return [line for line in file if line.endswith(b"\n")]

    async def events(self) -> list[JobEvent]:
        """All events, newest first."""
        decoder = msgspec.json.Decoder(JobEvent)
        return await self._scribe.do(lambda: [decoder.decode(line) for line in reversed(self._lines())])

    async def table(self) -> str:
        """The numbers of all steps as CSV; of a step that was done again after a crash, the last ones."""
        rows: dict[int, Data] = {}
        for event in reversed(await self.events()):
            if event.data is not None:
                rows.setdefault(int(event.data["step"] or 0), {}).update(event.data)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))
        return text.getvalue()
