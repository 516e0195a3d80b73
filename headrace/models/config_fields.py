"""A model's description as the fields of a ``config.json``: what a folder that headrace writes says of itself."""

from __future__ import annotations

import math

from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig, RopeScaling
from headrace.models.families import FAMILIES, Family
from headrace.models.pooling import CONFIG_FIELD


def config_fields(config: ModelConfig) -> dict[str, object]:
    """Fields from which :func:`~headrace.models.folder_model.load_folder` makes the same config again."""
    family = next(family for family in FAMILIES if family.name == config.family)
    attention = config.attention_blocks[0]
    mlp = next(block for block in config.blocks if isinstance(block, MlpSpec))
    fields: dict[str, object] = {
        "model_type": family.model_types[0],
        "hidden_size": config.hidden,
        "intermediate_size": mlp.inner,
        "num_hidden_layers": config.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_activation" if family.post_norm else "hidden_act": family.activation_name,
        "tie_word_embeddings": config.tied_head,
        "query_pre_attn_scalar": _query_scalar(attention),
        "eos_token_id": list(config.eos_ids),
    }
    if config.pooling is not None:
        fields[CONFIG_FIELD] = config.pooling
    if config.bos_id is not None:
        fields["bos_token_id"] = config.bos_id
    return fields | _windows(config) | _ropes(config, family)


def _query_scalar(attention: AttentionSpec) -> float:
    """The scalar whose inverse root is the scale: the whole number, if it gives the same bits."""
    scalar = 1.0 / attention.scale**2
    return round(scalar) if 1.0 / math.sqrt(round(scalar)) == attention.scale else scalar


def _windows(config: ModelConfig) -> dict[str, object]:
    windows = [block.window for block in config.attention_blocks]
    declared = {window for window in windows if window is not None}
    if not declared:
        return {"use_sliding_window": False}
    types = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return {"use_sliding_window": True, "sliding_window": max(declared), "layer_types": types}


def _ropes(config: ModelConfig, family: Family) -> dict[str, object]:
    full = next((block for block in config.attention_blocks if block.window is None), config.attention_blocks[0])
    local = next((block for block in config.attention_blocks if block.window is not None), full)
    if family.local_theta is None and _rope(full) == _rope(local):
        return {"rope_parameters": _rope(full)}
    return {"rope_parameters": {"full_attention": _rope(full), "sliding_attention": _rope(local)}}


def _rope(block: AttentionSpec) -> dict[str, object]:
    scaling: RopeScaling | None = block.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": block.rope_theta}
    fields: dict[str, object] = {"rope_type": scaling.kind, "rope_theta": block.rope_theta, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return fields
