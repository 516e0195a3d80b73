"""What runs inside a Ray actor: a worker that joins the server, as ``headrace instance`` does by hand."""

from __future__ import annotations

import os
import time

from headrace.engine.joining import join
from headrace.errors import HeadraceError

BACK_SECONDS = 0.25
"""A worker that comes before the server has noticed that its predecessor ended finds no place yet."""


class RayWorker:
    """One worker; it lives in a process of its own, whose place Ray chose."""

    def place(self) -> tuple[str, int]:
        """The address of its node, and its process there."""
        import ray

        return ray.util.get_node_ip_address(), os.getpid()

    def serve(self, address: tuple[str, int], key: bytes, threads: int) -> str:
        """Join, and run an engine until either side ends; why it ended. What it needs comes as plain values, never as code."""
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it for its own workers; engines have theirs
        while True:
            try:
                join(address, key, threads)
            except HeadraceError as error:
                if error.code != "state_conflict":
                    return error.message
                time.sleep(BACK_SECONDS)
            else:
                return "the connection to the server has ended"
