"""Running a batch's lines: a few at a time, each once, its result on the disk before it counts."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.server.batch_file import Journal, Survey, lines_of, parsed, survey
from headrace.server.batch_line import LineRun
from headrace.server.identity import new_id
from headrace.server.lanes import Lanes
from headrace.server.protocol.batches import BatchLine, BatchUsage, Counts, InputDetails, LineError, LineResponse, LineResult
from headrace.server.rendering import encode_json
from headrace.server.storage.disk import Scribe

_MOST_DEATHS = 3  # of engines, after which the line that ran is refused
_DEADLY = frozenset({"engine_dead", "model_failed"})
_FULL_DISK_WAIT = 5.0
_LONGEST_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class Journals:
    """What is done: answers, and refusals."""

    output: Journal
    errors: Journal

    @staticmethod
    def paths(folder: Path, batch_id: str) -> tuple[Path, Path]:
        """Where they lie."""
        return folder / f"{batch_id}.output.jsonl", folder / f"{batch_id}.errors.jsonl"

    @staticmethod
    def open(folder: Path, batch_id: str) -> Journals:
        """Read what is done. Blocks."""
        output, errors = Journals.paths(folder, batch_id)
        return Journals(Journal(output), Journal(errors))

    def close(self) -> None:
        """Close both. Blocks."""
        self.output.close()
        self.errors.close()


@dataclass(frozen=True, slots=True)
class Means:
    """What runs share: how a line is answered, how many at a time, and who writes."""

    line_run: LineRun
    lanes: Lanes
    scribe: Scribe


class BatchRun:
    """One batch while its lines run. ``total`` of its lines; ``ends_at`` in seconds since 1970."""

    def __init__(self, means: Means, journals: Journals, *, total: int, ends_at: float) -> None:
        self._line_run = means.line_run
        self._lanes = means.lanes
        self._scribe = means.scribe
        self._journals = journals
        self._ends_at = ends_at
        self.total = total
        self.ran = 0  # lines, since this run began

    @staticmethod
    async def survey(path: Path, endpoint: str) -> Survey:
        """Look a batch's file over."""
        return await asyncio.to_thread(survey, path, endpoint)

    @property
    def counts(self) -> Counts:
        """Lines so far."""
        return Counts(self.total, len(self._journals.output.done), len(self._journals.errors.done))

    @property
    def usage(self) -> BatchUsage:
        """Tokens so far."""
        one, other = self._journals.output.usage, self._journals.errors.usage
        cached = InputDetails(one.input_tokens_details.cached_tokens + other.input_tokens_details.cached_tokens)
        return BatchUsage(
            one.input_tokens + other.input_tokens, one.output_tokens + other.output_tokens,
            one.total_tokens + other.total_tokens, input_tokens_details=cached,
        )  # fmt: skip

    async def through(self, path: Path) -> bool:
        """Run all lines that are not done. False when time ran out: what was left is then written down as expired."""
        try:
            async with asyncio.timeout(max(0.0, self._ends_at - time.time())):
                await self._run_all(path)
        except TimeoutError:
            await self._expire(path)
            return False
        return True

    async def close(self) -> None:
        """Close the journals."""
        for journal in (self._journals.output, self._journals.errors):
            await self._scribe.do(journal.close)

    def _is_done(self, line: BatchLine) -> bool:
        return line.custom_id in self._journals.output.done or line.custom_id in self._journals.errors.done

    async def _run_all(self, path: Path) -> None:
        async with asyncio.TaskGroup() as group:
            for _, data in lines_of(path):
                line = parsed(data, self._line_run.endpoint.paths[0])
                if self._is_done(line):
                    await asyncio.sleep(0)
                    continue
                began = asyncio.Event()
                group.create_task(self._in_a_lane(line, began))
                await began.wait()  # so that only as many lines are in memory as run

    async def _in_a_lane(self, line: BatchLine, began: asyncio.Event) -> None:
        try:
            async with self._lanes.place():
                began.set()
                result = await self._persistently(line)
                await self._write(line, result)
                self.ran += 1
        finally:
            began.set()

    async def _persistently(self, line: BatchLine) -> LineResponse | LineError:
        """Run a line, again when the server could not take it; given up when the engine ends under it time and again."""
        deaths, wait = 0, 0.5
        while True:
            try:
                return await self._line_run.answer(line)
            except HeadraceError as error:
                deaths += error.code in _DEADLY
                if deaths >= _MOST_DEATHS:
                    return LineError(error.code, error.message)
                await asyncio.sleep(max(wait, error.retry_after or 0.0))
                wait = min(2 * wait, _LONGEST_WAIT)

    async def _write(self, line: BatchLine, result: LineResponse | LineError) -> None:
        answered = isinstance(result, LineResponse)
        response, error = (result, None) if isinstance(result, LineResponse) else (None, result)
        fine = answered and response is not None and response.status_code == 200
        journal = self._journals.output if fine else self._journals.errors
        await self._record(LineResult(new_id("batch_req"), line.custom_id, response, error), journal)

    async def _record(self, result: LineResult, journal: Journal) -> None:
        """Put a result on the disk, however long that is full."""
        data = encode_json(result) + b"\n"
        while True:
            try:
                await self._scribe.do(lambda: journal.append(data))
                return
            except HeadraceError:
                await asyncio.sleep(_FULL_DISK_WAIT)

    async def _expire(self, path: Path) -> None:
        expired = LineError("batch_expired", "This line was not run before the batch's time was up.")
        for _, data in lines_of(path):
            line = parsed(data, self._line_run.endpoint.paths[0])
            if not self._is_done(line):
                result = LineResult(new_id("batch_req"), line.custom_id, None, expired)
                await self._record(result, self._journals.errors)
