"""An experiment: a mechanism measured with and without, and claims that the measurement either bears out or not."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Relation = Literal[">=", "<=", "=="]
_RELATIONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, "==": operator.eq}

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of an experiment's table: what is asked, and what was measured here.

    ``claim_id`` is stable between revisions. Measured and asked are in ``unit``; NaN bears nothing out.
    """

    claim_id: str
    what: str
    relation: Relation
    asked: float
    measured: float
    unit: str = ""
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the measurement bears the claim out."""
        return not math.isnan(self.measured) and _RELATIONS[self.relation](self.measured, self.asked)


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a plot: points that explain a claim. ``x`` and ``y`` have equal length."""

    name: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """What an experiment returns."""

    claims: tuple[Claim, ...]
    series: tuple[Series, ...] = ()


Report = Callable[[str, int, int], None]
"""Progress: what is being done, parts done, parts in all."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What an experiment may depend on. ``quick`` asks for the same claims on less work, in under 60 s.

    ``model`` and ``threads`` are those of :class:`headrace.engine.settings.EngineSettings`.
    """

    quick: bool
    seed: int
    model: str
    threads: int | None
    report: Report


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment: ``source`` credits the paper whose mechanism is measured, ``minutes`` is the full run's length."""

    name: str
    title: str
    source: str
    minutes: float
    run: Callable[[Conditions], Findings]


def interleave(
    variants: Sequence[Callable[[], Outcome]], rounds: int, report: Callable[[int, int], None] | None = None
) -> list[list[Outcome]]:
    """Run every variant ``rounds`` times, one after the other, turning the order round each time (A B, B A, A B …).

    So that a machine whose speed drifts favours none of them. Gives the outcomes by variant, in order of the rounds.
    """
    outcomes: list[list[Outcome]] = [[] for _ in variants]
    done = 0
    for number in range(rounds):
        order = range(len(variants)) if number % 2 == 0 else reversed(range(len(variants)))
        for which in order:
            outcomes[which].append(variants[which]())
            done += 1
            if report is not None:
                report(done, rounds * len(variants))
    return outcomes
