"""What a scheduler counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What a scheduler has done so far.

    ``computed`` counts rows that ran, ``prompt_tokens`` those of them inside prompts, ``recomputed`` rows whose pages were
    lost to a preemption and that have to run again. ``lookups`` counts admissions that asked the prefix index, ``found`` the
    tokens whose pages were there.
    """

    steps: int = 0
    computed: int = 0
    prompt_tokens: int = 0
    generated: int = 0
    recomputed: int = 0
    preemptions: int = 0
    lookups: int = 0
    found: int = 0
    forks: int = 0
    finished: int = 0
    cancelled: int = 0
    refused: int = 0
