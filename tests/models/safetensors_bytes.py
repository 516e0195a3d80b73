"""Safetensors files and model folders made by hand for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def header(entries: object) -> bytes:
    data = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(data).to_bytes(8, "little") + data


def safetensors(tensors: dict[str, np.ndarray[Any, Any]], kind: str = "F32") -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, values in tensors.items():
        data = values.tobytes()
        entries[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    return header(entries) + body


TINY_CONFIG: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_tensors() -> dict[str, np.ndarray[Any, Any]]:
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (10, 8),
        "model.norm.weight": (8,),
        layer + "input_layernorm.weight": (8,),
        layer + "post_attention_layernorm.weight": (8,),
        layer + "self_attn.q_proj.weight": (8, 8),
        layer + "self_attn.k_proj.weight": (4, 8),
        layer + "self_attn.v_proj.weight": (4, 8),
        layer + "self_attn.o_proj.weight": (8, 8),
        layer + "mlp.gate_proj.weight": (12, 8),
        layer + "mlp.up_proj.weight": (12, 8),
        layer + "mlp.down_proj.weight": (8, 12),
    }
    rng = np.random.default_rng(2)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def tiny_folder(folder: Path, **changes: object) -> Path:
    """A whole llama of one layer; ``changes`` replace fields of ``config.json`` (``None`` removes)."""
    config = {name: value for name, value in (TINY_CONFIG | changes).items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors(tiny_tensors()))
    return folder
