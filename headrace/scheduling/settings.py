"""The options of scheduling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.scheduling.composer import POLICIES
from headrace.settings.declaration import option, validate


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """What the next step may hold and how many items may wait for it.

    ``step_tokens`` and ``gap_target_ms`` left open are measured at start: the knee of throughput over step size, and
    no bound on the gap beyond what steps of that size cost.
    """

    step_tokens: int | None = option(
        None, unit="tokens", minimum=16, maximum=8192, help="Rows a step aims at; none: the knee measured at start."
    )
    gap_target_ms: int | None = option(
        None, unit="ms", minimum=1, maximum=60_000, help="Longest step while streams wait for a token; none: the knee's own time."
    )
    max_running: int = option(256, unit="items", minimum=1, maximum=4096, help="Items that hold pages at the same time.")
    max_waiting: int = option(1024, unit="items", minimum=1, maximum=1_000_000, help="Items that queue before 429 is answered.")
    max_logit_rows: int = option(256, unit="rows", minimum=16, maximum=8192, help="Rows of a step that pass through the head.")
    prefix_reuse: str = option(
        "on", choices=("off", "on", "shared"),
        help="Reuse pages of prompts that begin alike. on: among requests with one API key. shared: among all.",
    )  # fmt: skip
    policy: str = option(
        "fair", choices=POLICIES.names,
        help="Who goes first. fair: the API key served least, then first come. fcfs: first come. priority: also over who runs.",
    )  # fmt: skip

    first_token_ms: int | None = option(
        None, unit="ms", minimum=1, maximum=3_600_000,
        help="Promise: who would wait longer for a first token, beyond its own prompt, gets 503 at once; none: all wait.",
    )  # fmt: skip
    adapter_passing: int = option(
        0, unit="requests", minimum=0, maximum=100_000,
        help="How many later requests may pass one whose adapter costs time, if theirs cost less; 0: none.",
    )  # fmt: skip
    fair_among: str = option(
        "keys", choices=("keys", "adapters"), help="Whom the fair policy serves alike. adapters: also those of one API key."
    )

    def __post_init__(self) -> None:
        validate(self)

    def part_of(self, adapters: Sequence[tuple[int, float]]) -> str | None:
        """Which part of its share an item with these adapters belongs to; ``None``: shares have no parts."""
        return " ".join(str(generation) for generation, _ in adapters) if self.fair_among == "adapters" else None
