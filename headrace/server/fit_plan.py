"""Which models fit into memory together, and which must leave for another: pure arithmetic, no clock and no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ENGINE_BYTES = 96 * 2**20
"""An engine process without weights and pages: interpreter, kernels, buffers and up to 32 MiB of logits."""
TEXT_BYTES = 40 * 2**20
"""The text side of a model whatever its size: the interpreters of its tokenizer and of its template."""
WORD_BYTES = 896
"""What one entry of the vocabulary takes in the tokenizer and in the API process."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a loaded model takes. ``pages``: its pool when that is full; one of them has ``page_bytes``."""

    weights: int
    pages: int
    process: int
    page_bytes: int = 1

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.pages + self.process


@dataclass(frozen=True, slots=True)
class Held:
    """A model in memory. ``last_used``: any number that grows with time. ``busy``: requests run on it."""

    name: str
    bytes: int
    pinned: bool
    busy: bool
    last_used: float


def process_bytes(vocab: int, instances: int = 1) -> int:
    """What a model of that vocabulary takes besides weights and pages, with so many engine processes."""
    return instances * ENGINE_BYTES + TEXT_BYTES + vocab * WORD_BYTES


def split_pool(wanted: Mapping[str, int], total: int) -> dict[str, int]:
    """Each model's part of ``total`` bytes for pages, in proportion to what it wants; nobody gets more than it wants.

    The parts depend on no order of loading, so that a model is the same size each time it comes.
    """
    everything = sum(wanted.values())
    if everything <= total:
        return dict(wanted)
    return {name: want * total // everything for name, want in wanted.items()}


def who_leaves(need: int, room: int, held: Sequence[Held]) -> list[str] | None:
    """Names that must leave before ``need`` bytes fit into ``room`` beside the rest; ``None``: it can't be done.

    Idle models go first, those used longest ago before others; pinned ones never. Nobody leaves without need.
    """
    missing = need + sum(one.bytes for one in held) - room
    leaving: list[Held] = []
    for one in sorted((one for one in held if not one.pinned), key=lambda one: (one.busy, one.last_used)):
        if missing <= 0:
            break
        leaving.append(one)
        missing -= one.bytes
    if missing > 0:
        return None
    for one in reversed(leaving.copy()):  # a large one found late may have made earlier ones needless; newest stay first
        if missing + one.bytes <= 0:
            leaving.remove(one)
            missing += one.bytes
    return [one.name for one in leaving]


def describe(needs: Mapping[str, Need], room: int) -> list[str]:
    """The plan for people: one line a model, and whether all fit together."""
    lines = [
        f"{name} needs {need.total / 2**20:,.0f} MiB: weights {need.weights / 2**20:,.0f},"
        f" pages {need.pages / 2**20:,.0f}, process {need.process / 2**20:,.0f}" + ("" if need.total <= room else "; never fits")
        for name, need in needs.items()
    ]
    total = sum(need.total for need in needs.values())
    verdict = "all fit together" if total <= room else "the one used longest ago leaves when another is wanted"
    return [*lines, f"together {total / 2**20:,.0f} MiB of {room / 2**20:,.0f} MiB: {verdict}"]
