"""What a job will take of the memory, known before anything of it exists."""

from __future__ import annotations

from headrace.models.adapter import module_sides
from headrace.models.config import ModelConfig
from headrace.training.saved import plan_needs, saved_bytes
from headrace.training.settings import TrainingSettings
from headrace.training.units import PART_ROWS

_COPIES = 4  # of the adapter: values, gradient, two moments


def job_bytes(config: ModelConfig, settings: TrainingSettings, threads: int, *, keep_both: bool) -> int:
    """Bytes of activations, loss, adapter, gradient and moments."""
    sides = module_sides(config)
    needs = plan_needs(config, [set(settings.targets)] * len(sides), keep_both=keep_both)
    tokens = settings.max_tokens * (2 if settings.method == "dpo" else 1)
    adapter = sum(settings.rank_of(name) * sum(own[name]) for own in sides for name in settings.targets)
    head = PART_ROWS * threads * (config.vocab + 2 * config.hidden)
    arrays = 4 * len(needs) + 8  # each may begin at a line of its own
    return saved_bytes(config, needs, tokens) + 4 * (_COPIES * adapter + head) + 64 * arrays
