"""What a server's processes hold, read from /proc: memory, open files, threads; and how that changes over a run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Held:
    """What one process held at a moment (seconds of the run). ``resident``: bytes."""

    at: float
    resident: int
    files: int
    threads: int


@dataclass(slots=True)
class Watch:
    """Samples of the server and of its engines, by role and process id."""

    server: int
    began: float = field(default_factory=time.monotonic)
    samples: dict[tuple[str, int], list[Held]] = field(default_factory=dict)

    def look(self) -> dict[str, Held]:
        """Take a sample of each process that lives; the last of each role."""
        found = {}
        for role, pid in [("server", self.server), *(("engine", engine) for engine in self.engines())]:
            held = _held(pid, time.monotonic() - self.began)
            if held is not None:
                self.samples.setdefault((role, pid), []).append(held)
                found[role] = held
        return found

    def engines(self) -> list[int]:
        """Process ids of the engines."""
        return [pid for pid in _children(self.server) if b"headrace.engine" in _read(pid, "cmdline")]


def growth_mib(samples: list[Held]) -> float:
    """Memory that came between the second quarter of the samples and the last, as medians, in MiB.

    The first quarter is left out: there, caches and pages fill that stay.
    """
    quarter = len(samples) // 4
    if quarter == 0:
        return 0.0
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    return (statistics.median(one.resident for one in late) - statistics.median(one.resident for one in early)) / 2**20


def _held(pid: int, at: float) -> Held | None:
    try:
        status = _read(pid, "status").decode()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return Held(at, int(fields["VmRSS"].split()[0]) * 1024, files, int(fields["Threads"]))
    except (OSError, KeyError):
        return None


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("[0-9]*"):
        try:
            found += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
        except OSError:
            continue
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
