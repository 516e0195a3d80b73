"""How large a pool of KV pages a model wants, from its description alone: no weights are read."""

from __future__ import annotations

from headrace.engine.machine import usable_memory
from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.kernels.interface import KV_BITS, PAGE_TOKENS, TorchKv, kv_head_bytes
from headrace.models.config import ModelConfig

FULL_CONTEXTS = 8  # sequences of full length that the default pool holds
MEMORY_SHARE = 0.25


def kv_format(setting: str, device: str) -> TorchKv:
    """The page format that the option ``kv`` names.

    Automatic is bf16 on the CPU: the others are smaller, and lose more than rounding. For torch it is fp32, as torch computes:
    then attention reads pages as they are, where bf16 would have to be gathered and widened.
    """
    for known in KV_BITS:
        if setting == known:
            return known
    return "fp32" if device == "torch" else "bf16"


def page_bytes(config: ModelConfig, kv: TorchKv) -> int:
    """Bytes of one page of all layers."""
    wide = 2 if kv == "fp32" else 1  # bf16 twice over
    return sum(
        wide * block.kv_heads * kv_head_bytes("bf16" if kv == "fp32" else kv, block.head_dim) for block in config.attention_blocks
    )


def context_length(config: ModelConfig, settings: EngineSettings) -> int:
    """Longest prompt plus output. Raises ``invalid_setting`` for more than the model knows."""
    wanted = settings.context_length
    if wanted is not None and wanted > config.context_length:
        message = f"context_length must be at most the model's {config.context_length:,} tokens, not {wanted:,}"
        raise HeadraceError("invalid_setting", message, param="context_length")
    return wanted or config.context_length


def wanted_pages(context: int) -> int:
    """Pages of the default pool, as far as memory allows."""
    return FULL_CONTEXTS * -(-context // PAGE_TOKENS)


def default_pool_bytes() -> int:
    """Most that the pools of all models take together unless an option says otherwise."""
    return int(MEMORY_SHARE * usable_memory())
