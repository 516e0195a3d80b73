"""Messages of watching: the API process asks for reports of steps for some seconds, the engine adds them to its outputs."""

from __future__ import annotations

import msgspec


class Watch(msgspec.Struct, tag="watch", frozen=True):
    """Report each step of the next ``seconds``. Who goes on looking asks again, so that nobody has to say when he leaves."""

    seconds: float


class StepReport(msgspec.Struct, frozen=True, array_like=True):
    """One step. Times in seconds; ``began`` on the machine's monotonic clock, the same for all processes.

    ``rows`` by what they are computed for: ``prompt``, ``decode``, ``verify`` (drafted tokens), ``recompute`` (lost with their
    pages), or an item's kind.
    ``chunks``: (request id, rows) of each piece of a prompt. ``preempted``: requests that gave their pages back for this step.
    ``pairs`` and ``heads``: query-key pairs, and rows that pass through the head.
    """

    began: float
    seconds: float
    model_seconds: float
    predicted: float
    rows: dict[str, int]
    sequences: int
    waiting: int
    chunks: list[tuple[int, int]]
    preempted: list[int]
    pairs: int = 0
    heads: int = 0
