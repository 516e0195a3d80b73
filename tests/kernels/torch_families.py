"""Tiny random models of every family, built by transformers and saved for our loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 97
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 20, "num_hidden_layers": 7, "hidden_size": 64}


def _llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_COMMON | changes))


def _mistral() -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**_COMMON, sliding_window=20, head_dim=16))


def _qwen2() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_COMMON, tie_word_embeddings=True))


def _qwen2_windowed() -> Any:
    config = transformers.Qwen2Config(**_COMMON, use_sliding_window=True, sliding_window=20, max_window_layers=1)
    return transformers.Qwen2ForCausalLM(config)


def _qwen3() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_COMMON, head_dim=24))


def _gemma3(**changes: Any) -> Any:
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_COMMON | _GEMMA | changes))


CASES: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "llama tied": lambda: _llama(tie_word_embeddings=True),
    "llama with llama3 rope": lambda: _llama(rope_parameters=_LLAMA3),
    "llama with linear rope": lambda: _llama(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}),
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen2 windowed": _qwen2_windowed,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "gemma3 with linear rope": lambda: _gemma3(
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    ),
}


def build(case: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The transformers model in fp32, saved into ``folder`` as ``dtype``. Every parameter is random, gains and biases too."""
    torch.manual_seed(sum(case.encode()))
    model = CASES[case]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + parameter)
            parameter.copy_(parameter.to(dtype))
    saved = CASES[case]().to(dtype)
    saved.load_state_dict(model.state_dict())
    saved.save_pretrained(folder)
    return model
