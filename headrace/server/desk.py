"""The server's lasting work: files, and what runs without a client waiting for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from headrace.server.batch_desk import Batch, BatchDesk
from headrace.server.batch_line import LineRun
from headrace.server.batch_run import BatchRun, Journals, Means
from headrace.server.endpoint import Endpoint
from headrace.server.lanes import Lanes
from headrace.server.response_desk import ResponseDesk
from headrace.server.storage.disk import Scribe
from headrace.server.storage.file_store import FileLimits, FileStore
from headrace.server.storage.folder import StateFolder
from headrace.server.tuning.desk import TuningDesk

if TYPE_CHECKING:
    from headrace.server.hub import Hub

logger = logging.getLogger("headrace.server")
_SWEEP_SECONDS = 60.0
_MIB = 1 << 20


class Desk:
    """What lies in the state folder, and the tasks that work on it. ``generating``: the operations that batches may name."""

    def __init__(self, hub: Hub, folder: StateFolder, generating: Mapping[str, Endpoint]) -> None:
        self._hub = hub
        self._folder = folder
        self._generating = generating
        self._scribe = Scribe()
        settings = hub.settings
        limits = FileLimits(settings.max_file_mib * _MIB, settings.max_tenant_files_mib * _MIB, settings.max_tenant_files)
        self.files = FileStore(folder, limits, self._scribe)
        self._lanes = Lanes(lambda: hub.online)
        self.batches = BatchDesk(folder, self.files, self._scribe, self._batch_run)
        self.files.used_by(self.batches.uses)
        self.tuning = TuningDesk(hub, folder, self.files, self._scribe)
        self.files.used_by(self.tuning.uses)
        self.responses = ResponseDesk(folder, self._scribe)
        self._starting: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Go on with what an earlier server began."""
        self._hub.metrics.lasting.desk = self
        self.batches.start()
        self.tuning.start()
        self._starting = asyncio.create_task(self.responses.start())
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """Stop all work; it goes on at the next start."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._starting is not None:
            await self._starting
        await self.responses.close()
        await asyncio.gather(self.batches.close(), self.tuning.close())
        self._scribe.close()
        self._folder.close()

    async def _sweep(self) -> None:
        while True:
            for sweep in (self.files.sweep, self.responses.store.sweep):
                try:
                    await sweep()
                except Exception:  # what the disk refused is tried again
                    logger.exception("what has expired could not be dropped")
            await asyncio.sleep(_SWEEP_SECONDS)

    def _batch_run(self, batch: Batch, journals: Journals) -> BatchRun:
        shown = batch.shown
        means = Means(LineRun(self._hub, self._generating[shown.endpoint], batch.tenant), self._lanes, self._scribe)
        return BatchRun(means, journals, total=shown.request_counts.total, ends_at=shown.expires_at)
