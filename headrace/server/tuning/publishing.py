"""Checkpoints and finished adapters as models of the server."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.engine.client import EngineClient
from headrace.errors import HeadraceError
from headrace.server.adapter_roots import trusted_place
from headrace.server.adapter_table import Wanted
from headrace.server.served_model import ServedModel
from headrace.server.tuning.job import Job, model_name

if TYPE_CHECKING:
    from headrace.server.hub import Hub

logger = logging.getLogger("headrace.server.tuning")


class Publisher:
    """Gives adapters that jobs have written their names. Requests under way keep the generation that they began with."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def publish(self, name: str, folder: Path, model: ServedModel, engine: EngineClient) -> None:
        """Serve a checkpoint under this name from now on, unless it is served already."""
        place = trusted_place(folder, f"{name} {folder.name}")
        current = self._hub.adapters.current(model, name)
        if current is not None and current.place == place:
            return
        expected = current.generation if current is not None else 0
        await self._hub.adapters.add(Wanted(name, model, place, expected=expected), engine)

    async def withdraw(self, name: str, model: ServedModel) -> None:
        """Serve it no longer."""
        current = self._hub.adapters.current(model, name)
        if current is not None:
            await self._hub.adapters.remove(current)

    def remember(self, job: Job) -> None:
        """Serve a finished job's adapter, and its other checkpoints; their engine is told when it is there or somebody asks."""
        model = self._hub.table.get(job.shown.model)
        if model is None or job.folder is None:
            return
        last = Path(job.folder)
        names = {model_name(job): last}
        names |= {one.fine_tuned_model_checkpoint: last.with_name(f"step-{one.step_number:08d}") for one in job.checkpoints}
        for name, folder in names.items():
            try:
                wanted = Wanted(name, model, trusted_place(folder, f"{name} {folder.name}"))
            except HeadraceError:
                if folder == last:
                    logger.warning("the adapter of %s is gone from the disk", job.id)
                continue
            self._hub.adapters.know(wanted)
