"""Facts about the machine and the revision, printed beside every measurement: a number without them is gossip."""

from __future__ import annotations

import gc
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import headrace
from headrace.engine.machine import cpu_name, usable_cores, usable_memory

_INTERESTING_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the numbers were measured on. Memory in GiB; ``cores`` are those this process may use."""

    cpu: str
    cores: int
    logical_cpus: int
    features: tuple[str, ...]
    memory_gib: float
    available_gib: float
    huge_pages: str
    open_files: int
    system: str
    python: str
    revision: str

    def line(self) -> str:
        """One line for the foot of a table."""
        parts = (self.cpu, f"{self.cores} cores", f"{self.memory_gib:.0f} GiB", self.system, f"Python {self.python}")
        return ", ".join((*parts, f"headrace {self.revision}"))


def inspect() -> Machine:
    """Read the facts; takes a few milliseconds and runs nothing but ``git``."""
    memory = _key_values("/proc/meminfo")
    return Machine(
        cpu=cpu_name() or platform.machine(),
        cores=usable_cores(),
        logical_cpus=os.cpu_count() or 1,
        features=cpu_features(),
        memory_gib=usable_memory() / 2**30,
        available_gib=_kibibytes(memory, "MemAvailable") / 2**20,
        huge_pages=_huge_pages(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        revision=revision(),
    )


def cpu_features() -> tuple[str, ...]:
    """Instruction sets that matter to the kernels, as the kernel of the system names them."""
    for key, value in _key_values("/proc/cpuinfo").items():
        if key == "flags":
            present = set(value.split())
            return tuple(flag for flag in _INTERESTING_FLAGS if flag in present)
    return ()


def revision() -> str:
    """Version, and the git revision when running from a checkout (``+`` when files differ from it)."""
    root = Path(headrace.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return headrace.__version__
    commit = _git(root, "rev-parse", "--short", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{headrace.__version__} ({commit}{'+' if changed else ''})" if commit else headrace.__version__


def read_bandwidth(threads: int, mebibytes: int = 256, rounds: int = 5) -> float:
    """Best memory read rate in GB/s over ``rounds`` sums of ``mebibytes`` MiB, split between ``threads``.

    A sum of 64-bit words is bound by memory and not by the adder, and numpy releases the interpreter lock in it.
    """
    import numpy as np

    parts = [np.ones(mebibytes * 2**20 // 8 // threads, dtype=np.uint64) for _ in range(threads)]
    best = 0.0
    for _ in range(rounds):
        workers = [threading.Thread(target=np.add.reduce, args=(part,)) for part in parts[1:]]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        np.add.reduce(parts[0])
        for worker in workers:
            worker.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - started) / 1e9)
    return best


def resident_bytes() -> int:
    """Memory of this process that is resident now, after a collection of what nobody holds. 0 where the system does not say."""
    gc.collect()
    path = Path("/proc/self/statm")
    return int(path.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed version of each package, ``not installed`` for the others."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _key_values(path: str) -> dict[str, str]:
    """``key : value`` lines of a proc file; the first of repeated keys; empty where there is no such file."""
    found: dict[str, str] = {}
    if sys.platform != "linux":
        return found
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    return found


def _kibibytes(values: dict[str, str], key: str) -> float:
    return float(values.get(key, "0 kB").split()[0])


def _huge_pages() -> str:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not path.exists():
        return "unknown"
    text = path.read_text(encoding="utf-8")
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else text.strip()
