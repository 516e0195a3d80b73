"""What a soak must show, as rows that hold or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headrace.evaluation.soak.run import SoakResult, SoakSettings
from headrace.evaluation.soak.watch import Held, growth_mib

_MEMORY_MIB = 24.0
_FILES = 4
_THREADS = 6  # pools of threads that were not full before
_ENOUGH = 16  # samples; fewer say nothing of growth


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant: what was found and the most that is allowed."""

    what: str
    found: float
    allowed: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Whether it was kept."""
        return self.found <= self.allowed


def checks(result: SoakResult) -> list[Check]:
    """All invariants of a run."""
    asked, answered = sum(result.asked.values()), sum(result.answered.values())
    rows = [
        Check("requests without a whole answer", asked - answered, 0),
        Check("answers that differ from the undisturbed ones", len(result.wrong), 0),
        Check("disturbances that met something else than they must", len(result.faults), 0),
        Check("rests after which something was left over", len(result.left_over), 0),
        Check("engines that had to be started again", max(0, len(result.engines) - 1), 0),
        Check("lines of the log that tell of an error", len(result.log), 0),
        Check("exit code of the server", 255 if result.exit_code is None else abs(result.exit_code), 0),
    ]
    for (role, _), samples in _longest(result).items():
        if len(samples) < _ENOUGH:
            continue
        rows.append(Check(f"memory that the {role} gained, second to last quarter", growth_mib(samples), _MEMORY_MIB, "MiB"))
    if len(result.at_rest) > 1:
        for role, before in result.at_rest[0].items():
            after = result.at_rest[-1].get(role, before)
            rows.append(Check(f"open files that the {role} gained, first to last rest", after.files - before.files, _FILES))
            rows.append(Check(f"threads that the {role} gained, first to last rest", after.threads - before.threads, _THREADS))
    return rows


def document(settings: SoakSettings, result: SoakResult) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "kind": "soak",
        "minutes": settings.minutes, "model": settings.model, "people": settings.people, "pool_mib": settings.pool_mib,
        "seed": settings.seed, "seconds": round(result.seconds, 1), "asked": dict(result.asked), "answered": dict(result.answered),
        "disturbances": dict(result.acts), "rests": result.rests, "wrong": result.wrong[:20], "lost": result.lost[:20],
        "faults": result.faults[:20], "left_over": result.left_over, "log": result.log, "metrics": result.metrics,
        "checks": [{"what": one.what, "found": one.found, "allowed": one.allowed, "holds": one.holds} for one in checks(result)],
        "samples": {
            f"{role} {pid}": [[round(one.at, 1), one.resident, one.files, one.threads] for one in samples]
            for (role, pid), samples in (result.watch.samples if result.watch else {}).items()
        },
    }  # fmt: skip


def _longest(result: SoakResult) -> dict[tuple[str, int], list[Held]]:
    """The samples of each role's process that lived longest."""
    found: dict[str, tuple[tuple[str, int], list[Held]]] = {}
    for place, samples in (result.watch.samples if result.watch else {}).items():
        if place[0] not in found or len(samples) > len(found[place[0]][1]):
            found[place[0]] = place, samples
    return dict(found.values())
