"""All batches: their records, and a task for each one that has not ended. A restart goes on where the journals end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.errors import HeadraceError
from headrace.server.batch_run import BatchRun, Journals
from headrace.server.identity import new_id
from headrace.server.protocol.batches import BatchError, BatchErrors, BatchObject, BatchRequest
from headrace.server.storage.disk import Scribe, to_the_end, will_pass
from headrace.server.storage.file_store import FileStore, NewFile
from headrace.server.storage.folder import StateFolder
from headrace.server.storage.records import Records

logger = logging.getLogger("headrace.server.batches")
WINDOW = 86_400
"""Seconds after which a batch ends whatever is left of it."""

MOST_UNFINISHED = 100
"""Batches of one tenant that may be unfinished at a time."""

MOST_ENDED = 1000
"""Batches of one tenant that are remembered after their end; one more, and the oldest is forgotten. Their files stay."""

_AT_A_TIME = 8
_WAIT = 5.0  # seconds before the disk is tried again
ENDED = frozenset({"failed", "completed", "expired", "cancelled"})


class Batch(msgspec.Struct, frozen=True):
    """One batch as it is kept. ``lifetime``: of its output files, in seconds; ``ends_as``: what it is after ``finalizing``."""

    shown: BatchObject
    tenant: str
    lifetime: int | None = None
    ends_as: str = "completed"


class BatchDesk:
    """Takes batches in and sees them through. Only the event loop touches its tables."""

    def __init__(self, folder: StateFolder, files: FileStore, scribe: Scribe, run: Callable[[Batch, Journals], BatchRun]) -> None:
        self._files = files
        self._scribe = scribe
        self._run = run
        self._records = Records(folder.room("batches"), Batch)
        self._journals = folder.room("batch_journals")
        self._batches = self._records.read()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[str, BatchRun] = {}
        self._arriving: Counter[str] = Counter()  # batches of each tenant that are being written down
        self._cancels: dict[str, asyncio.Task[Batch]] = {}
        self._lines = 0
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._closing = False

    def start(self) -> None:
        """Go on with what has not ended."""
        for name, batch in self._batches.items():
            if batch.shown.status not in ENDED:
                self._begin(name)

    async def close(self) -> None:
        """Stop everything; what is done stays done."""
        self._closing = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def find(self, batch_id: str, tenant: str) -> Batch:
        """A batch of this tenant, as it stands now. Raises ``batch_not_found``, also for those of others."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.tenant != tenant:
            raise HeadraceError("batch_not_found", "No batch with this id exists.", param="id")
        return self._live(batch)

    def of(self, tenant: str) -> list[Batch]:
        """A tenant's batches, newest first."""
        own = [self._live(batch) for batch in self._batches.values() if batch.tenant == tenant]
        return sorted(own, key=lambda batch: (batch.shown.created_at, batch.shown.id), reverse=True)

    def _live(self, batch: Batch) -> Batch:
        """With the counts of the moment."""
        run = self._runs.get(batch.shown.id)
        return changed(batch, request_counts=run.counts, usage=run.usage) if run is not None and run.total else batch

    def states(self) -> Counter[str]:
        """How many batches are in each state."""
        return Counter(batch.shown.status for batch in self._batches.values())

    @property
    def lines(self) -> int:
        """Lines that have run since the start."""
        return self._lines + sum(run.ran for run in self._runs.values())

    def uses(self, file_id: str) -> bool:
        """True while a batch that has not ended reads this file."""
        return any(batch.shown.input_file_id == file_id and batch.shown.status not in ENDED for batch in self._batches.values())

    async def create(self, body: BatchRequest, tenant: str) -> Batch:
        """Take a batch in. Raises ``file_not_found``, ``quota_exceeded``, or ``invalid_value`` for a file of another purpose.

        Results have no quota of their own, so that none is lost: who has all the files that he may have begins nothing more.
        """
        file = self._files.find(body.input_file_id, tenant)
        if file.purpose != "batch":
            message = f"The file was uploaded with the purpose '{file.purpose}', not 'batch'."
            raise HeadraceError("invalid_value", message, param="input_file_id")
        unfinished = sum(batch.tenant == tenant and batch.shown.status not in ENDED for batch in self._batches.values())
        if unfinished + self._arriving[tenant] >= MOST_UNFINISHED:
            raise HeadraceError("quota_exceeded", f"A key may have {MOST_UNFINISHED} unfinished batches; wait for one to end.")
        self._files.check_room(tenant)
        now = int(time.time())
        shown = BatchObject(
            id=new_id("batch"), endpoint=body.endpoint, input_file_id=file.id, status="validating", created_at=now,
            expires_at=now + WINDOW, metadata=body.metadata,
        )  # fmt: skip
        lifetime = body.output_expires_after.seconds if body.output_expires_after is not None else None
        self._arriving[tenant] += 1
        return await to_the_end(self._take_in(Batch(shown, tenant, lifetime)))

    async def _take_in(self, batch: Batch) -> Batch:
        try:
            await self._keep(batch)
        finally:
            self._arriving[batch.tenant] -= 1
        self._begin(batch.shown.id)
        ended = [one.shown.id for one in self.of(batch.tenant) if one.shown.status in ENDED]
        for old in ended[MOST_ENDED:]:
            del self._batches[old]
        await self._scribe.do(lambda: self._remove(ended[MOST_ENDED:]))
        return batch

    def _remove(self, names: list[str]) -> None:
        for name in names:
            self._records.remove(name)

    async def cancel(self, batch_id: str, tenant: str) -> Batch:
        """End a batch early; what is done is given out. Raises ``state_conflict`` when it has ended."""
        batch = self.find(batch_id, tenant)
        if batch.shown.status in ENDED or batch.shown.status == "finalizing":
            raise HeadraceError("state_conflict", f"The batch can't be cancelled: it is {batch.shown.status}.", param="id")
        if batch.shown.status == "cancelling":
            return batch
        if batch_id not in self._cancels:  # who asks a second time waits for the first
            work = self._cancels[batch_id] = asyncio.create_task(self._cancel(batch_id, tenant))
            work.add_done_callback(lambda _: self._cancels.pop(batch_id))
        return await asyncio.shield(self._cancels[batch_id])

    async def _cancel(self, batch_id: str, tenant: str) -> Batch:
        task = self._tasks.get(batch_id)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        batch = self.find(batch_id, tenant)
        try:
            if batch.shown.status not in ENDED:
                batch = await self._keep(changed(batch, status="cancelling", cancelling_at=int(time.time())))
        finally:
            if not self._closing:
                self._begin(batch_id)
        return batch

    def _begin(self, batch_id: str) -> None:
        self._tasks[batch_id] = asyncio.create_task(self._see_through(batch_id))

    async def _see_through(self, batch_id: str) -> None:
        steps = {
            "validating": self._validate, "in_progress": self._run_lines, "cancelling": self._give_up, "finalizing": self._finalise,
        }  # fmt: skip
        try:
            while (batch := self._batches[batch_id]).shown.status not in ENDED:
                try:
                    await steps[batch.shown.status](batch)
                except (HeadraceError, OSError) as error:
                    if not will_pass(error):
                        raise
                    logger.warning("%s waits: %s", batch_id, error)
                    self._count(self._runs.pop(batch_id, None))
                    await asyncio.sleep(_WAIT)
        except HeadraceError as error:
            await self._fail(self._batches[batch_id], [BatchError(error.code, error.message, None, error.param)])
        except Exception:
            logger.exception("%s failed", batch_id)
            await self._fail(self._batches[batch_id], [BatchError("internal_error", "The server has a bug; its log says more.")])
        finally:
            self._count(self._runs.pop(batch_id, None))
            if self._tasks.get(batch_id) is asyncio.current_task():
                del self._tasks[batch_id]

    def _count(self, run: BatchRun | None) -> None:
        self._lines += run.ran if run is not None else 0

    async def _validate(self, batch: Batch) -> None:
        file = self._files.find(batch.shown.input_file_id, batch.tenant)
        found = await BatchRun.survey(await self._files.verified(file), batch.shown.endpoint)
        if found.errors:
            await self._fail(batch, found.errors)
            return
        counts = msgspec.structs.replace(batch.shown.request_counts, total=found.total)
        await self._keep(changed(batch, status="in_progress", in_progress_at=int(time.time()), request_counts=counts))

    async def _run_lines(self, batch: Batch) -> None:
        file = self._files.find(batch.shown.input_file_id, batch.tenant)
        async with self._turns:
            path = await self._files.verified(file)
            run = self._runs[batch.shown.id] = await self._opened(batch)
            try:
                whole = await run.through(path)
            finally:
                await run.close()
        batch = changed(batch, request_counts=run.counts, usage=run.usage)
        await self._finalising(batch, "completed" if whole else "expired")

    async def _opened(self, batch: Batch) -> BatchRun:
        opening = asyncio.ensure_future(asyncio.to_thread(Journals.open, self._journals, batch.shown.id))
        try:
            return self._run(batch, await asyncio.shield(opening))
        except asyncio.CancelledError:
            (await opening).close()  # nobody else knows of them
            raise

    async def _give_up(self, batch: Batch) -> None:
        run = await self._opened(batch)
        counts, usage = run.counts, run.usage
        await run.close()
        await self._finalising(changed(batch, request_counts=counts, usage=usage), "cancelled")

    async def _finalising(self, batch: Batch, ends_as: str) -> None:
        """Choose the names of the output files before there are any, so that a restart makes no second ones."""
        sizes = [path.stat().st_size if path.exists() else 0 for path in Journals.paths(self._journals, batch.shown.id)]
        names = [new_id("file") if size else None for size in sizes]
        status: dict[str, Any] = {"status": "finalizing", "finalizing_at": int(time.time())}
        fresh = changed(batch, **status, output_file_id=names[0], error_file_id=names[1])
        await self._keep(msgspec.structs.replace(fresh, ends_as=ends_as))

    async def _finalise(self, batch: Batch) -> None:
        shown = batch.shown
        names = (shown.output_file_id, "output"), (shown.error_file_id, "error")
        for path, (file_id, what) in zip(Journals.paths(self._journals, shown.id), names, strict=True):
            if file_id is not None and not self._files.has(file_id):
                new = NewFile(f"{shown.id}_{what}.jsonl", "batch_output", batch.tenant, batch.lifetime, file_id)
                await self._files.adopt(path, new)
            path.unlink(missing_ok=True)
        await self._keep(changed(batch, status=batch.ends_as, **{f"{batch.ends_as}_at": int(time.time())}))

    async def _fail(self, batch: Batch, errors: list[BatchError]) -> None:
        failed = changed(batch, status="failed", failed_at=int(time.time()), errors=BatchErrors(errors))
        while True:
            try:
                await self._keep(failed)
                return
            except (HeadraceError, OSError) as error:
                if not will_pass(error):
                    raise
                await asyncio.sleep(_WAIT)

    async def _keep(self, batch: Batch) -> Batch:
        await self._scribe.do(lambda: self._records.write(batch.shown.id, batch))
        self._batches[batch.shown.id] = batch
        return batch


def changed(batch: Batch, **fields: Any) -> Batch:
    """The batch with other fields for clients."""
    return msgspec.structs.replace(batch, shown=msgspec.structs.replace(batch.shown, **fields))
