"""Threads that work on parts of a unit side by side. Parts are the same whoever works on them, so results are too."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

logger = logging.getLogger("headrace.training.crew")

Part = TypeVar("Part")
Result = TypeVar("Result")

_SETTERS = tuple(f"{prefix}openblas_set_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", ""))
_GETTERS = tuple(name.replace("set", "get", 1) for name in _SETTERS)


class Crew:
    """``threads`` workers, the caller included. They sleep between units: nothing spins beside a serving step.

    A part multiplies matrices on its own thread only, because numpy's library would start threads of its own, which spin on the
    cores that serving needs (:func:`single_threaded_products`).
    """

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self._others = ThreadPoolExecutor(self.threads - 1, "training") if self.threads > 1 else None

    def run(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """``work`` on each part; results in the order of the parts. Raises what a part raised, after all have ended."""
        if self._others is None or len(parts) < 2:
            return _each(work, parts)
        share = -(-len(parts) // self.threads)
        futures: list[Future[list[Result]]] = [
            self._others.submit(_each, work, parts[first : first + share]) for first in range(share, len(parts), share)
        ]
        try:
            results = _each(work, parts[:share])
        finally:
            for future in futures:
                future.exception()
        for future in futures:
            results += future.result()
        return results

    def close(self) -> None:
        """End the threads."""
        if self._others is not None:
            self._others.shutdown()


def _each(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    with quiet_numbers():
        return [work(part) for part in parts]


def quiet_numbers() -> AbstractContextManager[object]:
    """Numbers that overflow are no warning in a log, on this thread: losses and gradients are looked at, and end their job."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


@contextmanager
def single_threaded_products() -> Iterator[None]:
    """While open, numpy's products run on the thread that asks for them. With an unknown library that is left as it is."""
    found = _product_threads()
    if found is None:
        yield
        return
    setter, getter = found
    former = int(getter())
    setter(1)
    try:
        yield
    finally:
        setter(former)


def _product_threads() -> tuple[Callable[[int], object], Callable[[], int]] | None:
    """How to set and get the threads of the OpenBLAS that numpy brings along."""
    place = Path(np.__file__).parent
    for folder in (place.parent / "numpy.libs", place / ".libs", place / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")) if folder.is_dir() else ():
            library = ctypes.CDLL(os.fspath(path))
            for setter, getter in zip(_SETTERS, _GETTERS, strict=True):
                if hasattr(library, setter) and hasattr(library, getter):
                    return getattr(library, setter), getattr(library, getter)
    logger.warning("numpy's matrix library is unknown: its threads are its own affair, training may slow serving down")
    return None
