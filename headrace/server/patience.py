"""A time limit on one wait after another, with a single timer for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from types import TracebackType
from typing import TypeVar

Result = TypeVar("Result")


class Patience:
    """Limits the awaits of the task that made it. A context manager: leaving it takes the timer back.

    ``asyncio.timeout`` makes and cancels a timer for each wait. A stream waits twice a token and is hardly ever late, so this one
    only writes down when the present wait is due, and its timer looks at that when it fires: a wait costs no timer.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "only a task can be made to stop waiting"
        self._task = task
        self._cancelling = task.cancelling()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._late = False

    def __enter__(self) -> Patience:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def wait(self, awaitable: Awaitable[Result], seconds: float) -> Result:
        """What ``awaitable`` gives. Raises TimeoutError when that takes longer; the awaitable has been cancelled then."""
        self._due = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._due:
            self._set()
        try:
            return await awaitable
        except asyncio.CancelledError:
            if not self._late:
                raise
            self._late = False
            if self._task.uncancel() > self._cancelling:
                raise  # somebody else wants the task to end as well
            raise TimeoutError from None
        finally:
            self._due = math.inf

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due == math.inf:
            return
        if self._loop.time() < self._due:
            self._set()
            return
        self._late = True
        self._task.cancel()
