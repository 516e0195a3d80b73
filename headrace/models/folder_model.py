"""A folder with ``config.json`` and safetensors as a model. Nothing in the folder is ever executed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from headrace.models.config import ModelConfig, RopeScaling
from headrace.models.families import Facts, Family, Rope, build_config, check_names, expected_tensors, family_of_model_type
from headrace.models.fields import Fields
from headrace.models.files import read_limited, refuse, release
from headrace.models.pooling import read_pooling
from headrace.models.quantised_folder import QuantisedWeights
from headrace.models.quantised_matrix import METADATA_KEY, read_info
from headrace.models.safetensors_file import SINGLE_NAME, StoredTensor, open_folder, parse_json, read_metadata
from headrace.models.weights import NO_BYTES, RawTensor, dequantise

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 1 << 20

_GLOBAL_NAMES = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
_BLOCK_NAMES = {
    "attention.norm": "input_layernorm.weight",
    "attention.q": "self_attn.q_proj.weight",
    "attention.k": "self_attn.k_proj.weight",
    "attention.v": "self_attn.v_proj.weight",
    "attention.o": "self_attn.o_proj.weight",
    "attention.q_bias": "self_attn.q_proj.bias",
    "attention.k_bias": "self_attn.k_proj.bias",
    "attention.v_bias": "self_attn.v_proj.bias",
    "attention.q_norm": "self_attn.q_norm.weight",
    "attention.k_norm": "self_attn.k_norm.weight",
    "mlp.norm": "post_attention_layernorm.weight",
    "mlp.gate": "mlp.gate_proj.weight",
    "mlp.up": "mlp.up_proj.weight",
    "mlp.down": "mlp.down_proj.weight",
}
# Families with norms behind the blocks call the norm before the MLP otherwise.
_POST_NORM_NAMES = {
    "attention.post_norm": "post_attention_layernorm.weight",
    "mlp.norm": "pre_feedforward_layernorm.weight",
    "mlp.post_norm": "post_feedforward_layernorm.weight",
}
# Fields that switch on what the chain lacks, with the values that leave it off.
_OFF: dict[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_bidirectional_attention": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "partial_rotary_factor": (1, 1.0),
    "num_local_experts": (0,),
    "num_experts": (0,),
    "quantization_config": (),
    "vision_config": (),
    "auto_map": (),
}
_LAYER_TYPES = ("sliding_attention", "full_attention")
_UNUSED = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


class FolderWeights:
    """The tensors of a safetensors folder under canonical names (a :class:`~headrace.models.weights.WeightSource`)."""

    def __init__(self, tensors: Mapping[str, StoredTensor], config: ModelConfig, family: Family) -> None:
        self._offset = family.gain_offset
        self._tensors: dict[str, StoredTensor] = {}
        expected = expected_tensors(config)
        names = {canonical: _file_name(canonical, family) for canonical in expected}
        ignorable = {name for name in tensors if _UNUSED.fullmatch(name)}
        if config.tied_head:
            ignorable.add(_GLOBAL_NAMES["head"])
        check_names(names, set(tensors), ignorable)
        for canonical, shape in expected.items():
            tensor = tensors[names[canonical]]
            if tensor.shape != shape:
                raise refuse(f"tensor {tensor.name!r} has shape {tensor.shape}, {CONFIG_NAME} asks for {shape}")
            if tensor.kind not in ("F32", "F16", "BF16"):
                raise refuse(
                    f"tensor {tensor.name!r} is of kind {tensor.kind}; without {METADATA_KEY!r} weights are F32, F16 or BF16"
                )
            self._tensors[canonical] = tensor

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of all tensors together."""
        return sum(tensor.data.size for tensor in self._tensors.values())

    def names(self) -> Iterable[str]:
        """Canonical names, in the order in which the chain uses them."""
        return self._tensors.keys()

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that canonical name: a view, but for norm gains that need an offset."""
        if name not in self._tensors:
            raise refuse(f"the model has no tensor {name!r}")
        tensor = self._tensors[name]
        raw = RawTensor(tensor.kind, tensor.shape, tensor.data)
        if self._offset and name.endswith("norm"):
            gains = dequantise(raw) + np.float32(self._offset)
            return RawTensor("F32", tensor.shape, gains.view(np.uint8))
        return raw

    def outline(self, name: str) -> RawTensor:
        """The tensor of that canonical name without its bytes."""
        return replace(self.tensor(name), data=NO_BYTES)

    def release(self) -> None:
        """Take the files' pages out of this process's memory; they come back when they are read."""
        for tensor in self._tensors.values():
            release(tensor.data)


def load_folder(folder: Path) -> tuple[ModelConfig, FolderWeights | QuantisedWeights]:
    """Open a folder model, quantised by headrace or not. Raises ``model_file`` when a file is damaged or the model type unknown."""
    fields = Fields(_read_json(folder, CONFIG_NAME), CONFIG_NAME)
    family = family_of_model_type(fields.text("model_type"))
    generation = _read_json(folder, "generation_config.json") if (folder / "generation_config.json").exists() else {}
    tensors: Mapping[str, StoredTensor] = open_folder(folder)
    pooling = read_pooling(folder, fields)
    facts = _facts(fields, family, generation.get("eos_token_id"))
    if pooling is not None:  # such models are saved without a head, and some without the outer name
        tensors = _with_outer_name(tensors)
        facts = replace(facts, pooling=pooling, tied_head=facts.tied_head or _GLOBAL_NAMES["head"] not in tensors)
    config = build_config(family, facts)
    quantised = read_metadata(folder / SINGLE_NAME).get(METADATA_KEY) if (folder / SINGLE_NAME).exists() else None
    if quantised is not None:
        return config, QuantisedWeights(tensors, config, read_info(quantised))
    return config, FolderWeights(tensors, config, family)


def _with_outer_name(tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    if _GLOBAL_NAMES["embedding"] in tensors:
        return tensors
    return {name if name == _GLOBAL_NAMES["head"] else f"model.{name}": tensor for name, tensor in tensors.items()}


def _read_json(folder: Path, name: str) -> dict[str, object]:
    return parse_json(read_limited(folder / name, MAX_CONFIG_BYTES), name)


def _file_name(canonical: str, family: Family) -> str:
    if canonical in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[canonical]
    _, layer, part = canonical.split(".", 2)
    names = _BLOCK_NAMES | _POST_NORM_NAMES if family.post_norm else _BLOCK_NAMES
    return f"model.layers.{layer}.{names[part]}"


def _facts(fields: Fields, family: Family, more_ends: object) -> Facts:
    for name, off in _OFF.items():
        if name in fields and fields.values[name] not in off:
            raise refuse(f"{CONFIG_NAME} {name!r} declares a feature that is not supported")
    activation = fields.text("hidden_activation" if "hidden_activation" in fields else "hidden_act", family.activation_name)
    if activation != family.activation_name:
        raise refuse(f"{CONFIG_NAME} activation {activation[:32]!r} is not the {family.activation_name!r} of {family.name}")
    hidden = fields.integer("hidden_size", 1, 65_536)
    heads = fields.integer("num_attention_heads", 1, 1024)
    head_dim = fields.integer("head_dim", 2, 1024, family.head_dim or hidden // heads)
    vocab = fields.integer("vocab_size", 1, 1 << 24)
    rope, local = _ropes(fields, family)
    return Facts(
        hidden=hidden,
        vocab=vocab,
        context_length=fields.integer("max_position_embeddings", 1, 1 << 24),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", 1, 1024, heads),
        head_dim=head_dim,
        inner=fields.integer("intermediate_size", 1, 1 << 20),
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        scale=1.0 / math.sqrt(fields.number("query_pre_attn_scalar", 1e-3, 1e6, head_dim)),
        windows=_windows(fields, family, fields.integer("num_hidden_layers", 1, 1024)),
        rope=rope,
        local_rope=local,
        tied_head=fields.flag("tie_word_embeddings", family.tied_default),
        bos_id=fields.integer("bos_token_id", 0, vocab - 1) if "bos_token_id" in fields else None,
        eos_ids=_ends(fields.values.get("eos_token_id"), more_ends, vocab),
    )


def _ends(first: object, second: object, vocab: int) -> tuple[int, ...]:
    ends: dict[int, None] = {}
    for declared in (first, second):
        for end in declared if isinstance(declared, list) else [declared]:
            if end is not None:
                ends[Fields({"eos_token_id": end}, CONFIG_NAME).integer("eos_token_id", 0, vocab - 1)] = None
    return tuple(ends)


def _windows(fields: Fields, family: Family, layers: int) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", family.window_default):
        return (None,) * layers
    if "sliding_window" not in fields and family.window_period is None:
        return (None,) * layers
    window = fields.integer("sliding_window", 1, 1 << 24)
    types = fields.values.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers or any(kind not in _LAYER_TYPES for kind in types):
            raise refuse(f"{CONFIG_NAME} 'layer_types' must be {layers} of sliding_attention and full_attention")
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    if family.window_period is not None:
        period = fields.integer("sliding_window_pattern", 1, 1024, family.window_period)
        return tuple(window if (layer + 1) % period else None for layer in range(layers))
    first = fields.integer("max_window_layers", 0, 1024, 0)
    return tuple(window if layer >= first else None for layer in range(layers))


def _ropes(fields: Fields, family: Family) -> tuple[Rope, Rope]:
    """Rotary settings of layers that see all keys and of windowed ones, from the newer or the older form."""
    if "rope_parameters" in fields:
        parameters = fields.group("rope_parameters")
        if "full_attention" not in parameters and "sliding_attention" not in parameters:
            rope = _rope(parameters, parameters.number("rope_theta", 1.0, 1e9, 10_000.0))
            return rope, rope
        full, local = parameters.group("full_attention"), parameters.group("sliding_attention")
        return _rope(full, full.number("rope_theta", 1.0, 1e9)), _rope(local, local.number("rope_theta", 1.0, 1e9))
    rope = _rope(fields.group("rope_scaling"), fields.number("rope_theta", 1.0, 1e9, 10_000.0))
    if family.local_theta is None:
        return rope, rope
    return rope, Rope(fields.number("rope_local_base_freq", 1.0, 1e9, family.local_theta))


def _rope(scaling: Fields, theta: float) -> Rope:
    kind = scaling.text("rope_type" if "rope_type" in scaling else "type", "default")
    if kind == "default":
        return Rope(theta)
    factor = scaling.number("factor", 1.0, 1e4)
    if kind == "linear":
        return Rope(theta, RopeScaling("linear", factor))
    if kind != "llama3":
        raise refuse(f"rope scaling {kind[:32]!r} is not supported; known are default, linear, llama3")
    low = scaling.number("low_freq_factor", 1e-3, 1e4)
    high = scaling.number("high_freq_factor", 1e-3, 1e4)
    if high <= low:
        raise refuse(f"rope scaling's high_freq_factor {high:g} is not above its low_freq_factor {low:g}")
    context = scaling.integer("original_max_position_embeddings", 1, 1 << 24)
    return Rope(theta, RopeScaling("llama3", factor, low, high, context))
