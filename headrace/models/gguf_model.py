"""A GGUF file as a model: metadata to ModelConfig, tensors under canonical names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from headrace.models.config import AttentionSpec, ModelConfig, Pooling, RopeScaling
from headrace.models.families import Facts, Family, Rope, build_config, check_names, expected_tensors, family_of_architecture
from headrace.models.fields import Fields
from headrace.models.files import refuse, release
from headrace.models.gguf_file import GgufFile, GgufTensor, open_gguf
from headrace.models.rope import inverse_frequencies, scaling_divisors
from headrace.models.weights import NO_BYTES, RawTensor, RowOrder

_ROPE_FACTORS = "rope_freqs.weight"
_GLOBAL_NAMES = {"embedding": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}
_BLOCK_NAMES = {
    "attention.norm": "attn_norm.weight",
    "attention.q": "attn_q.weight",
    "attention.k": "attn_k.weight",
    "attention.v": "attn_v.weight",
    "attention.o": "attn_output.weight",
    "attention.q_bias": "attn_q.bias",
    "attention.k_bias": "attn_k.bias",
    "attention.v_bias": "attn_v.bias",
    "attention.q_norm": "attn_q_norm.weight",
    "attention.k_norm": "attn_k_norm.weight",
    "attention.post_norm": "post_attention_norm.weight",
    "mlp.norm": "ffn_norm.weight",
    "mlp.gate": "ffn_gate.weight",
    "mlp.up": "ffn_up.weight",
    "mlp.down": "ffn_down.weight",
    "mlp.post_norm": "post_ffw_norm.weight",
}
# Architecture keys that this module reads or that change no arithmetic. Any other key may stand for a feature that the
# chain lacks, so it is refused rather than passed over.
_KNOWN_KEYS = frozenset(
    {
        "vocab_size",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "pooling_type",
        "tensor_data_layout",
    }
)
# Features that a file may declare as absent by a zero.
_ZERO_KEYS = ("expert_count", "expert_used_count", "attn_logit_softcapping", "final_logit_softcapping")
_POOLINGS: dict[int, Pooling | None] = {0: None, 1: "mean", 3: "last"}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


class GgufWeights:
    """The tensors of a GGUF file under canonical names (a :class:`~headrace.models.weights.WeightSource`)."""

    def __init__(self, file: GgufFile, config: ModelConfig, interleaved: bool) -> None:
        self._file = file
        self._tensors: dict[str, GgufTensor] = {}
        self._orders: dict[str, RowOrder] = {}
        expected = expected_tensors(config)
        names = {canonical: _file_name(canonical) for canonical in expected}
        check_names(names, set(file.tensors), {_ROPE_FACTORS})
        for canonical, shape in expected.items():
            tensor = file.tensors[names[canonical]]
            if tensor.shape != shape:
                raise refuse(f"tensor {tensor.name!r} has shape {tensor.shape}, the metadata asks for {shape}")
            self._tensors[canonical] = tensor
        if interleaved:
            for layer, block in enumerate(config.attention_blocks):
                self._orders[f"layer.{layer}.attention.q"] = half_split_order(block.heads, block.head_dim)
                self._orders[f"layer.{layer}.attention.k"] = half_split_order(block.kv_heads, block.head_dim)

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of all tensors together."""
        return sum(tensor.size for tensor in self._tensors.values())

    def names(self) -> Iterable[str]:
        """Canonical names, in the order in which the chain uses them."""
        return self._tensors.keys()

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that canonical name, a view into the file."""
        return replace(self.outline(name), data=self._file.data(self._tensors[name]))

    def outline(self, name: str) -> RawTensor:
        """The tensor of that canonical name without its bytes."""
        if name not in self._tensors:
            raise refuse(f"the model has no tensor {name!r}")
        tensor = self._tensors[name]
        return RawTensor(tensor.kind, tensor.shape, NO_BYTES, self._orders.get(name))

    def release(self) -> None:
        """Take the file's pages out of this process's memory; they come back when they are read."""
        release(self._file.buffer)


def half_split_order(heads: int, head_dim: int) -> RowOrder:
    """Row order that turns rotary pairs of neighbours (2j, 2j + 1) into pairs of halves (j, j + head_dim/2)."""
    rows = np.arange(heads * head_dim, dtype=np.int32).reshape(heads, head_dim // 2, 2)
    return np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(-1)


def load_gguf(path: Path) -> tuple[ModelConfig, GgufWeights, GgufFile]:
    """Open a GGUF model. Raises ``model_file`` when the file is damaged or its architecture unknown."""
    file = open_gguf(path)
    config, weights = describe_gguf(file)
    return config, weights, file


def describe_gguf(file: GgufFile) -> tuple[ModelConfig, GgufWeights]:
    """What an open file means. Raises ``model_file`` when its family, a feature or a shape is not supported."""
    family = family_of_architecture(Fields(file.metadata, "metadata").text("general.architecture"))
    config = build_config(family, _facts(file, family))
    return config, GgufWeights(file, config, family.interleaved)


def _file_name(canonical: str) -> str:
    if canonical in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[canonical]
    _, layer, part = canonical.split(".", 2)
    return f"blk.{layer}.{_BLOCK_NAMES[part]}"


def _facts(file: GgufFile, family: Family) -> Facts:
    prefix = str(file.metadata["general.architecture"]) + "."
    own = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    fields = Fields(own, "metadata")
    _check_features(fields)
    hidden = fields.integer("embedding_length", 1, 65_536)
    heads = fields.integer("attention.head_count", 1, 1024)
    layers = fields.integer("block_count", 1, 1024)
    head_dim = fields.integer("attention.key_length", 2, 1024, hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(key, 1, 1024, head_dim) != head_dim:
            raise refuse(f"metadata {key!r} differs from the head dimension {head_dim}, which is not supported")
    vocab = _vocabulary(file)
    tokens = Fields({key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}, "tokenizer metadata")
    ends = {tokens.integer(key, 0, vocab - 1): None for key in _END_KEYS if key in tokens}
    rope = _rope(fields, file, head_dim)
    local = rope if family.local_theta is None else Rope(fields.number("rope.freq_base_swa", 1.0, 1e9, family.local_theta))
    return Facts(
        hidden=hidden,
        vocab=vocab,
        context_length=fields.integer("context_length", 1, 1 << 24),
        heads=heads,
        kv_heads=fields.integer("attention.head_count_kv", 1, 1024, heads),
        head_dim=head_dim,
        inner=fields.integer("feed_forward_length", 1, 1 << 20),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        scale=_scale(family, layers, hidden // heads, head_dim),
        windows=_windows(fields, family, layers),
        rope=rope,
        local_rope=local,
        tied_head=_GLOBAL_NAMES["head"] not in file.tensors,
        bos_id=tokens.integer("bos_token_id", 0, vocab - 1) if "bos_token_id" in tokens else None,
        eos_ids=tuple(ends),
        pooling=_pooling(fields),
    )


def _pooling(fields: Fields) -> Pooling | None:
    kind = fields.integer("pooling_type", 0, 16, 0)
    if kind not in _POOLINGS:
        raise refuse(f"metadata 'pooling_type' is {kind}; known are 0 (none), 1 (mean) and 3 (last token)")
    return _POOLINGS[kind]


def _check_features(fields: Fields) -> None:
    for key in _ZERO_KEYS:
        if key in fields and fields.number(key, 0, 1e9):
            raise refuse(f"metadata {key!r} declares a feature (experts or soft capping) that is not supported")
    unknown = sorted(set(fields.values) - _KNOWN_KEYS - set(_ZERO_KEYS))
    if unknown:
        raise refuse(f"metadata {unknown[0]!r} declares a feature that is not supported")


def _vocabulary(file: GgufFile) -> int:
    """Rows of the embedding; the tokenizer may know fewer tokens, never more."""
    name = _GLOBAL_NAMES["embedding"]
    if name not in file.tensors or len(file.tensors[name].shape) != 2:
        raise refuse(f"tensor {name!r} (embedding) is missing or no matrix")
    return file.tensors[name].shape[0]


def _scale(family: Family, layers: int, width: int, head_dim: int) -> float:
    # GGUF has no key for Gemma 3's query scalar. It is the head dimension in every size but the largest (62 layers),
    # where it is hidden / heads.
    return 1.0 / math.sqrt(width if family.name == "gemma3" and layers == 62 else head_dim)


def _windows(fields: Fields, family: Family, layers: int) -> tuple[int | None, ...]:
    if "attention.sliding_window" not in fields:
        return (None,) * layers
    window = fields.integer("attention.sliding_window", 0, 1 << 24) or None
    declared = fields.values.get("attention.sliding_window_pattern")
    if isinstance(declared, np.ndarray):
        if declared.dtype != np.bool_ or len(declared) != layers:
            raise refuse(f"metadata 'attention.sliding_window_pattern' must be {layers} booleans")
        return tuple(window if local else None for local in declared.tolist())
    if family.window_period is None:
        return (window,) * layers
    period = fields.integer("attention.sliding_window_pattern", 1, layers + 64, family.window_period)
    return tuple(window if (layer + 1) % period else None for layer in range(layers))


def _rope(fields: Fields, file: GgufFile, head_dim: int) -> Rope:
    theta = fields.number("rope.freq_base", 1.0, 1e9, 10_000.0)
    kind = fields.text("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise refuse(f"rope scaling {kind[:32]!r} is not supported; known are none, linear and llama3 factors")
    if _ROPE_FACTORS in file.tensors:
        return Rope(theta, _llama3_scaling(file, theta, head_dim))
    return Rope(theta, RopeScaling("linear", fields.number("rope.scaling.factor", 1.0, 1e4)) if kind == "linear" else None)


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> RopeScaling:
    """GGUF keeps Llama 3's scaling as one divisor a pair; find the parameters that give exactly these."""
    tensor = file.tensors[_ROPE_FACTORS]
    if tensor.kind != "F32" or tensor.shape != (head_dim // 2,):
        raise refuse(f"tensor {_ROPE_FACTORS!r} must be {head_dim // 2} F32 values")
    stored = file.data(tensor).view("<f4").astype(np.float64)
    factor = float(stored.max(initial=1.0))
    if not 1.0 <= factor <= 1e4:
        raise refuse(f"tensor {_ROPE_FACTORS!r} has a divisor out of 1 to 10000")
    scaling = RopeScaling("llama3", factor)
    plain = inverse_frequencies(AttentionSpec(1, 1, head_dim, 1.0, theta)).astype(np.float64)
    if not np.allclose(scaling_divisors(plain, scaling), stored, rtol=1e-3, atol=0.0):
        raise refuse(f"tensor {_ROPE_FACTORS!r} follows no known scaling")
    return scaling
