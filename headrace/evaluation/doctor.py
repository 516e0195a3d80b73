"""What `headrace doctor` looks at, and the advice that follows from what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from headrace.evaluation.machine import Machine, inspect, package_versions, read_bandwidth
from headrace.memory.address_space import map_limit
from headrace.memory.arena import shared_huge_pages

PACKAGES = ("numpy", "tokenizers", "gguf", "jinja2", "starlette", "uvicorn", "msgspec", "llguidance", "uvloop", "torch")
_OPTIONAL = ("uvloop", "torch")
_LOW_MEMORY_GIB = 1.0
_LOW_FILES = 1024
_LOW_MAPS = 65_530


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``bad`` means nothing runs without it, ``note`` that it could be better."""

    state: Literal["ok", "note", "bad"]
    what: str
    found: str
    advice: str = ""


def examine(measure: bool = True) -> list[Finding]:
    """All findings; about a second with ``measure`` (memory bandwidth), else instant."""
    machine = inspect()
    findings = [*_machine(machine), _kernels(machine)]
    if measure:
        findings.append(_bandwidth(machine))
    return [*findings, *_models(), _packed_weights(), *_packages()]


def _machine(machine: Machine) -> Iterator[Finding]:
    yield Finding("ok", "machine", f"{machine.cpu}, {machine.system}")
    fewer = "" if machine.cores == machine.logical_cpus else f" of {machine.logical_cpus} (the rest is not ours)"
    yield Finding("ok", "cores", f"{machine.cores}{fewer}")
    low = machine.available_gib < _LOW_MEMORY_GIB
    memory = f"{machine.available_gib:.1f} GiB free of {machine.memory_gib:.1f}"
    yield Finding("note" if low else "ok", "memory", memory, "set --pool-mib small" if low else "")
    yield _huge_pages(machine)
    yield _mappings()
    few = machine.open_files < _LOW_FILES
    advice = "raise it (ulimit -n 4096): each connection needs one" if few else ""
    yield Finding("note" if few else "ok", "open files", f"{machine.open_files:,}", advice)


def _huge_pages(machine: Machine) -> Finding:
    """The pool is shared memory, for which the system has a switch of its own."""
    mode = shared_huge_pages()
    huge = mode in ("always", "within_size", "advise")
    advice = "" if huge else "'advise' in /sys/kernel/mm/transparent_hugepage/shmem_enabled: a few percent"
    found = f"page pool: {'yes' if huge else 'no'} ({mode}), other memory: {machine.huge_pages}"
    return Finding("ok" if huge else "note", "huge pages", found, advice)


def _mappings() -> Finding:
    """What contiguous views live on."""
    limit = map_limit()
    few = limit < _LOW_MAPS
    advice = "raise it (sysctl vm.max_map_count): with --device torch each scattered sequence needs hundreds" if few else ""
    return Finding("note" if few else "ok", "mappings", f"{limit:,} a process", advice)


def _kernels(machine: Machine) -> Finding:
    features = " ".join(machine.features) or "none of the known ones"
    try:
        from headrace.kernels import _native
    except ImportError as error:
        return Finding("bad", "kernels", f"not built ({type(error).__name__})", "run `make native`, or install the package again")
    isa = _native.isa()
    built = ", ".join(row[0] for row in _native.isa_support() if row[1])
    slow = isa == "portable"
    advice = "no AVX2: generation will be several times slower" if slow else ""
    return Finding("note" if slow else "ok", "kernels", f"{isa} (built: {built}); the CPU has {features}", advice)


def _bandwidth(machine: Machine) -> Finding:
    one, all_cores = read_bandwidth(1), read_bandwidth(machine.cores)
    bound = all_cores * 1e9 / 96.4e6
    found = f"{all_cores:.1f} GB/s read with {machine.cores} threads, {one:.1f} with one"
    return Finding("ok", "bandwidth", found, f"bounds one stream of the default model to about {bound:,.0f} tok/s")


def _models() -> Iterator[Finding]:
    from headrace.models.catalog import list_models

    cards = list_models()
    ready = [card.name for card in cards if card.state == "ready"]
    missing = [card.name for card in cards if card.state == "not installed"]
    advice = f"get more: headrace pull {missing[0]}" if missing else ""
    yield Finding("ok" if ready else "bad", "models", ", ".join(ready) or "none", advice)


def _packed_weights() -> Finding:
    try:
        from headrace.kernels.packed_cache import PackedCache

        state = PackedCache().state()
    except (ImportError, OSError) as error:
        return Finding("note", "packed weights", f"can't be looked at ({error})", "each start packs its weights anew")
    found = f"{state.files} of them, {state.bytes / 2**20:,.0f} MiB of at most {state.limit / 2**20:,.0f} in {state.folder}"
    return Finding(
        "ok", "packed weights", found, "made at a model's first start; may be deleted at any time" if state.files else ""
    )


def _packages() -> Iterator[Finding]:
    versions = package_versions(PACKAGES)
    absent = [name for name, version in versions.items() if version == "not installed" and name not in _OPTIONAL]
    yield Finding("ok", "packages", ", ".join(f"{name} {version}" for name, version in versions.items()))
    if absent:
        yield Finding("bad", "missing packages", ", ".join(absent), "install headrace again")
