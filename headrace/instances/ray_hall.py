"""A hall whose workers a Ray cluster brings: a launcher process places them, and asks for new ones when they end."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
import secrets
import sys
from contextlib import suppress
from dataclasses import replace

import msgspec

from headrace.errors import HeadraceError
from headrace.instances.hall import Hall
from headrace.instances.ray_wire import MOST_BYTES, Began, Door, Ended, FromLauncher, Node, Unplaced, Wanted
from headrace.placement.back_off import BackOff
from headrace.placement.joining import Joining

logger = logging.getLogger("headrace.instances.ray_hall")

GOODBYE_SECONDS = 15.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class RayHall(Hall):
    """The key is the hall's own; it reaches the workers inside the cluster. ``placed``: who runs where, by number of worker.

    Raises ``invalid_setting`` at construction when Ray is not installed.
    """

    def __init__(self, joining: Joining) -> None:
        if importlib.util.find_spec("ray") is None:
            message = "instances on a Ray cluster need Ray here and on its nodes: pip install 'headrace[cluster]'"
            raise HeadraceError("invalid_setting", message, param="instances")
        self._own_key = secrets.token_bytes(32)
        super().__init__(joining, self._own_key)
        self.placed: dict[int, Began] = {}
        self._launcher: asyncio.subprocess.Process | None = None
        self.ended = 0  # workers, since the server started
        self._wanted: Wanted | None = None
        self._over = False
        self._keeping: asyncio.Task[None] | None = None
        self._logging: asyncio.Task[None] | None = None

    async def bring(self, threads: int | None, pool_mib: int | None) -> None:
        """Find the cluster, open, and have the workers come. Raises ``invalid_setting``: no cluster, or no room in it."""
        self._wanted = Wanted(self._joining.cluster or "", self._joining.instances, threads, pool_mib)
        node = await self._launch()
        if not isinstance(node, Node):
            self.close()
            await self.closed()
            raise HeadraceError("invalid_setting", _reason(node), param="instances")
        self._joining = replace(self._joining, host=node.host, port=0)
        await self.open()
        self._keeping = asyncio.create_task(self._keep())

    def close(self) -> None:
        """Take nobody more, and give the workers back."""
        super().close()
        self._over = True
        if self._launcher is not None and self._launcher.stdin is not None:
            self._launcher.stdin.close()

    async def closed(self) -> None:
        """Wait until the launcher has ended, and with it its workers, and the cluster if it was its own."""
        if self._launcher is not None:
            try:
                await asyncio.wait_for(self._launcher.wait(), GOODBYE_SECONDS)
            except TimeoutError:
                logger.warning("the launcher of Ray workers does not end; it is killed")
                self._launcher.kill()
                await self._launcher.wait()
        for task in (self._keeping, self._logging):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _launch(self) -> FromLauncher | None:
        command = [sys.executable, "-m", "headrace.instances.ray_launcher"]
        pipe = asyncio.subprocess.PIPE
        self._launcher = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, limit=MOST_BYTES)
        self._logging = asyncio.create_task(_log(self._launcher.stderr))
        assert self._wanted is not None, "somebody has asked for workers"
        self._say(self._wanted)
        if self._over:
            self.close()
        return await self._hear()

    async def _keep(self) -> None:
        """Hear the launcher, and start another when it ends: its actors end with it, so that new ones must come."""
        back_off = BackOff()
        while not self._over:
            self._say(Door(self.port, self._own_key))
            while (message := await self._hear()) is not None:
                back_off.forget()
                self._note(message)
            self.placed.clear()
            node: FromLauncher | None = None
            while not self._over and not isinstance(node, Node):
                wait = back_off.after(0.0)
                logger.error("the launcher of Ray workers has ended; another is started in %.1f s", wait)
                await asyncio.sleep(wait)
                node = await self._launch()
                if not isinstance(node, Node):
                    logger.error("%s", _reason(node))

    def _say(self, message: Wanted | Door) -> None:
        assert self._launcher is not None
        assert self._launcher.stdin is not None
        self._launcher.stdin.write(msgspec.json.encode(message) + b"\n")

    async def _hear(self) -> FromLauncher | None:
        assert self._launcher is not None
        assert self._launcher.stdout is not None
        with suppress(ValueError, msgspec.DecodeError):  # a line that is too long, or none of ours
            line = await self._launcher.stdout.readline()
            return msgspec.json.decode(line, type=FromLauncher) if line else None
        return None

    def _note(self, message: FromLauncher) -> None:
        match message:
            case Began(worker, node, pid):
                self.placed[worker] = message
                logger.info("Ray runs worker %d on %s as process %d", worker, node, pid)
            case Ended(worker, reason, wait):
                self.placed.pop(worker, None)
                self.ended += 1
                logger.warning("worker %d has ended (%s); Ray is asked for another in %.1f s", worker, reason, wait)
            case Unplaced(reason):
                logger.error("%s", reason)
            case Node():
                logger.debug("the launcher said again where it is")


def _reason(message: FromLauncher | None) -> str:
    return message.reason if isinstance(message, Unplaced) else "the launcher of Ray workers has ended (the log says why)"


async def _log(source: asyncio.StreamReader | None) -> None:
    """What Ray and the launcher print, as lines of the server's own log."""
    assert source is not None, "a pipe was asked for"
    with suppress(ValueError):  # a line that is too long is the last one
        while line := await source.readline():
            text = _COLOUR.sub("", line.decode(errors="replace")).strip()
            if text:
                logger.info("Ray says: %s", text[:500])
