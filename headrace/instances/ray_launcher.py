"""``python -m headrace.instances.ray_launcher``: places a server's workers in a Ray cluster, and others when they end.

A process of its own, so that Ray's threads and its libraries stay out of the server. It ends with the server, whatever that died of
(its input ends then), and its actors end with it. Source: Ray (actors, placement groups).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgspec

from headrace.instances.ray_wire import MOST_BYTES, Began, Door, Ended, FromLauncher, Node, Unplaced, Wanted
from headrace.instances.ray_worker import RayWorker
from headrace.placement.back_off import BackOff

PLACING_SECONDS = 60.0
"""For room in a cluster that may grow."""
OWN_SECONDS = 5.0
"""For room in one that is this machine."""
_GLANCE_SECONDS = 0.5


@dataclass(slots=True)
class _Place:
    """A bundle of the placement group and who is in it. ``due``: when the next one may be asked for."""

    actor: Any = None
    running: Any = None
    began: float = 0.0
    back_off: BackOff = field(default_factory=BackOff)
    due: float = field(default_factory=time.monotonic)


class Launcher:
    """Workers of one server. ``say`` tells the server."""

    def __init__(self, wanted: Wanted, say: Any) -> None:
        import ray

        self._ray = ray
        self._wanted = wanted
        self._say = say
        named = wanted.cluster or os.environ.get("RAY_ADDRESS")
        own: dict[str, Any] = {} if named else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        ray.init(address=named or "local", namespace="headrace", log_to_driver=False, logging_level=logging.WARNING, **own)
        self._patience = PLACING_SECONDS if named else OWN_SECONDS
        cores = int(ray.cluster_resources().get("CPU", 0))
        self._threads = wanted.threads or max(1, cores // wanted.instances)
        self._places = [_Place() for _ in range(wanted.instances)]
        self._group: Any = None

    def greet(self) -> None:
        """Tell the server where it can be reached from the cluster."""
        self._say(Node(self._ray.util.get_node_ip_address(), self._threads))

    def reserve(self) -> str | None:
        """Take room for all workers, on as many nodes as there are; what is missing when there is none."""
        from ray.util import placement_group

        memory = {} if self._wanted.pool_mib is None else {"memory": self._wanted.pool_mib << 20}
        need = [{"CPU": self._threads} | memory] * self._wanted.instances
        self._group = placement_group(need, strategy="SPREAD")
        if self._group.wait(timeout_seconds=self._patience):
            return None
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        there = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('memory', 0) / 2**30:.1f} GiB" for node in nodes[:16])
        free = self._ray.available_resources().get("CPU", 0.0)
        each = f"{self._threads} CPUs" + ("" if self._wanted.pool_mib is None else f" and {self._wanted.pool_mib} MiB")
        return (
            f"the cluster has no room for {self._wanted.instances} workers of {each}: its {len(nodes)} nodes have {there}, "
            f"{free:g} CPUs are free; ask for fewer instances or --threads"
        )

    def run(self, door: Door, over: threading.Event) -> None:
        """Keep every place filled until it is over."""
        host = self._ray.util.get_node_ip_address()
        while not over.is_set():
            now = time.monotonic()
            for number, place in enumerate(self._places):
                if place.running is None and place.due <= now:
                    self._begin(number, place, (host, door.port), door.key)
            running = [place.running for place in self._places if place.running is not None]
            if not running:
                over.wait(_GLANCE_SECONDS)
                continue
            done, _ = self._ray.wait(running, timeout=_GLANCE_SECONDS)
            for number, place in enumerate(self._places):
                if place.running in done:
                    self._ended(number, place)

    def _begin(self, number: int, place: _Place, address: tuple[str, int], key: bytes) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
        memory = None if self._wanted.pool_mib is None else self._wanted.pool_mib << 20
        made = self._ray.remote(RayWorker).options(
            num_cpus=self._threads, memory=memory, max_restarts=0, max_concurrency=2, scheduling_strategy=where
        )
        place.actor = made.remote()
        place.running = place.actor.serve.remote(address, key, self._threads)
        place.began = time.monotonic()
        threading.Thread(target=self._tell_place, args=(number, place.actor), daemon=True).start()

    def _tell_place(self, number: int, actor: Any) -> None:
        try:
            self._say(Began(number, *self._ray.get(actor.place.remote())))
        except self._ray.exceptions.RayError:
            return  # it ended at once; whoever waits for its run says so

    def _ended(self, number: int, place: _Place) -> None:
        try:
            reason = str(self._ray.get(place.running))
        except self._ray.exceptions.RayError as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
        self._ray.kill(place.actor)
        now = time.monotonic()
        wait = place.back_off.after(now - place.began)
        place.actor = place.running = None
        place.due = now + wait
        self._say(Ended(number, reason[:500], wait))

    def close(self) -> None:
        """Give everything back."""
        self._ray.shutdown()


def main() -> None:
    """Read what is wanted, place it, and stay until the input ends."""
    # What libraries print must not get between the lines for the server.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(message: FromLauncher) -> None:
        with lock:
            out.write(msgspec.json.encode(message) + b"\n")
            out.flush()

    wanted = msgspec.json.decode(_line(sys.stdin.buffer), type=Wanted)
    try:
        launcher = Launcher(wanted, say)
    except Exception as error:  # whatever Ray raises when it can't reach or start a cluster
        say(Unplaced(f"Ray can't be reached or started: {str(error).strip()[:400] or type(error).__name__}"))
        return
    try:
        missing = launcher.reserve()
        if missing is not None:
            say(Unplaced(missing))
            return
        launcher.greet()
        door = msgspec.json.decode(_line(sys.stdin.buffer), type=Door)
        over = threading.Event()
        threading.Thread(target=_watch_input, args=(over,), daemon=True).start()
        launcher.run(door, over)
    finally:
        launcher.close()


def _line(source: BinaryIO) -> bytes:
    line = source.readline(MOST_BYTES)
    if not line.endswith(b"\n"):
        raise SystemExit(0)  # the server has ended
    return line


def _watch_input(over: threading.Event) -> None:
    while sys.stdin.buffer.readline(MOST_BYTES):
        continue
    over.set()


if __name__ == "__main__":
    main()
