"""How a machine is split among instances: threads, cores, pages. Arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """What one instance gets. No ``cores``: it may run anywhere, because there are fewer cores than threads."""

    threads: int
    cores: tuple[int, ...]


def split_machine(instances: int, threads: int, cores: Sequence[int]) -> list[Part]:
    """``threads`` shared out as evenly as can be, at least one each, each on cores of its own where there are enough."""
    counts = [max(1, threads // instances + (number < threads % instances)) for number in range(instances)]
    if sum(counts) > len(cores):
        return [Part(count, ()) for count in counts]
    parts, at = [], 0
    for count in counts:
        parts.append(Part(count, tuple(cores[at : at + count])))
        at += count
    return parts
