"""What a fine-tuning job is told: method, adapter, optimiser, data order. Checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from headrace.errors import HeadraceError
from headrace.models.adapter import MODULES
from headrace.settings.nearest import suggestion

Method = Literal["sft", "dpo"]
Schedule = Literal["linear", "cosine", "constant"]

METHODS = ("sft", "dpo")
SCHEDULES = ("linear", "cosine", "constant")
MOST_RANK = 512
MOST_TOKENS = 32_768  # of one pack

# Field: least, most.
_BOUNDS: dict[str, tuple[float, float]] = {
    "rank": (1, MOST_RANK),
    "alpha": (1e-3, 1e5),
    "learning_rate": (1e-9, 10.0),
    "warmup": (0.0, 1.0),
    "weight_decay": (0.0, 10.0),
    "beta1": (0.0, 0.9999),
    "beta2": (0.0, 0.99999),
    "epsilon": (1e-12, 1e-2),
    "epochs": (1, 1000),
    "batch": (1, 4096),
    "max_tokens": (8, MOST_TOKENS),
    "clip": (0.0, 1e6),
    "seed": (0, 2**63 - 1),
    "beta": (1e-4, 100.0),
    "checkpoint_every": (0, 1_000_000),
    "checkpoints_kept": (1, 1000),
}


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """One job's settings. Raises ``invalid_value`` naming the field.

    ``rank``, ``alpha``: of every module of ``targets``, where ``ranks`` (module → rank) names none of its own; the scale of a
    module is alpha / its rank. ``schedule``: of the learning rate, after a linear ``warmup`` (share of all steps).
    ``batch``: samples, or pairs, an optimiser step learns from. ``max_tokens``: short samples are packed up to so many, longer
    ones are cut. ``clip``: norm of the whole gradient, 0 for no limit. ``beta``: of DPO. ``checkpoint_every``: optimiser steps
    (0: once an epoch), of which the last ``checkpoints_kept`` stay.
    """

    method: Method = "sft"
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = MODULES
    ranks: Mapping[str, int] = field(default_factory=dict)
    learning_rate: float = 2e-4
    schedule: Schedule = "linear"
    warmup: float = 0.03
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    epochs: int = 3
    batch: int = 8
    max_tokens: int = 1024
    clip: float = 1.0
    seed: int = 0
    beta: float = 0.1
    checkpoint_every: int = 0
    checkpoints_kept: int = 3

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
                raise _refusal(name, f"must lie in {least:g} … {most:g}, not {str(value)[:32]}")
            if isinstance(_DEFAULT_KINDS[name], int) and not isinstance(value, int):
                raise _refusal(name, f"must be a whole number, not {value}")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise _refusal("targets", "must name one module or more, each once")
        for name in (*self.targets, *self.ranks):
            _check_choice("targets", name, MODULES)
        for name, rank in self.ranks.items():
            if name not in self.targets:
                raise _refusal("ranks", f"names {name!r}, which is no target")
            if not isinstance(rank, int) or not 1 <= rank <= MOST_RANK:
                raise _refusal("ranks", f"of {name!r} must lie in 1 … {MOST_RANK}, not {str(rank)[:32]}")

    def rank_of(self, module: str) -> int:
        """The rank of one target."""
        return self.ranks.get(module, self.rank)

    def scale_of(self, module: str) -> float:
        """What a target's product is multiplied by: alpha / rank."""
        return self.alpha / self.rank_of(module)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of optimiser step ``step`` (from 0) of ``steps``."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - warm) / max(1, steps - warm)
        left = 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.learning_rate * left


_DEFAULT_KINDS: dict[str, object] = {
    name: entry.default for name, entry in TrainingSettings.__dataclass_fields__.items() if name in _BOUNDS
}


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        told = str(value)[:32]
        raise _refusal(name, f"must be one of {', '.join(known)}, not {told!r}{suggestion(told, known)}")


def _refusal(name: str, problem: str) -> HeadraceError:
    return HeadraceError("invalid_value", f"{name} {problem}", param=name)
