"""``adapter_config.json`` as PEFT writes it: what it says of ranks, scales and targets. What headrace can't honour is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from headrace.models.adapter import MAX_RANK
from headrace.models.fields import Fields
from headrace.models.files import refuse

ADAPTER_CONFIG = "adapter_config.json"
MODULE_KEYS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
ALL_LINEAR = "all-linear"

_T = TypeVar("_T")

_MAX_PATTERNS = 4096
_MAX_PATTERN_CHARACTERS = 1024
_MAX_REPEATS = 3  # of one pattern: matching a name of 60 characters then takes 60³ steps at the worst
# Fields that switch on what the runners lack; absent, null, false or empty leaves it off.
_LACKING = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the low-rank ones",
    "lora_bias": "biases",
    "fan_in_fan_out": "transposed base matrices",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "changed embeddings",
    "target_parameters": "parameters outside of linear modules",
    "use_qalora": "pooled inputs",
    "alora_invocation_tokens": "adapters that begin inside a prompt",
    "use_bdlora": "block-diagonal factors",
}
# Fields of training and book-keeping: they change nothing of what a finished adapter computes.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ephemeral_gpu_offload", "eva_config", "inference_mode",
    "lora_dropout", "lora_ga_config", "loftq_config", "megatron_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type", "ensure_weight_tying", "velora_config",
}  # fmt: skip
_READ = {
    "alpha_pattern", "bias", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "r",
    "rank_pattern", "target_modules", "use_rslora",
}  # fmt: skip
# Ways of beginning a training that leave the base model as it is.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The settings of one adapter file; keys are module names in the base model (``model.layers.0.self_attn.q_proj``)."""

    base_model: str
    rank: int
    alpha: float
    rank_pattern: Mapping[re.Pattern[str], int]
    alpha_pattern: Mapping[re.Pattern[str], float]
    targets: frozenset[str] | re.Pattern[str]
    excluded: frozenset[str] | re.Pattern[str] = frozenset()
    layers: tuple[int, ...] | None = None
    root: Literal["rank", "root"] = "rank"

    def targeted(self, key: str, layer: int) -> bool:
        """Whether the adapter changes that module."""
        if self.layers is not None and layer not in self.layers:
            return False
        return _named(self.targets, key) and not _named(self.excluded, key)

    def changed(self, layers: int) -> tuple[tuple[str, ...], ...]:
        """By layer, which of :data:`MODULE_KEYS` are :meth:`targeted`. Where no name says which layer, all are decided at once."""
        if isinstance(self.targets, re.Pattern) or isinstance(self.excluded, re.Pattern) or _layered(self.targets | self.excluded):
            keys = [{name: f"model.layers.{layer}.{key}" for name, key in MODULE_KEYS.items()} for layer in range(layers)]
            return tuple(tuple(name for name in own if self.targeted(own[name], layer)) for layer, own in enumerate(keys))
        any_layer = self.layers[0] if self.layers else 0
        common = tuple(name for name, key in MODULE_KEYS.items() if self.targeted(key, any_layer))
        return tuple(common if self.layers is None or layer in self.layers else () for layer in range(layers))

    def rank_of(self, key: str) -> int:
        """Rank of that module: of the first pattern that matches, else the common one."""
        if not self.rank_pattern:
            return self.rank
        return next((rank for pattern, rank in self.rank_pattern.items() if pattern.match(key)), self.rank)

    def scale_of(self, key: str) -> float:
        """What B·A is multiplied by: alpha / rank, or alpha / √rank of rank-stabilised adapters (Kalajdzievski)."""
        alpha = next((alpha for pattern, alpha in self.alpha_pattern.items() if pattern.match(key)), self.alpha)
        rank = self.rank_of(key)
        return alpha / (rank if self.root == "rank" else math.sqrt(rank))


def parse_adapter_config(values: Mapping[str, object]) -> AdapterConfig:
    """Read the fields of the file. Raises ``model_file`` naming the field that is wrong or asks for what headrace lacks."""
    fields = Fields(values, ADAPTER_CONFIG)
    kind = fields.text("peft_type")
    if kind != "LORA":
        raise refuse(f"{ADAPTER_CONFIG} 'peft_type' is {kind[:32]!r}, only LORA is supported")
    _check_lacking(fields)
    return AdapterConfig(
        base_model=fields.text("base_model_name_or_path", "")[:256],
        rank=fields.integer("r", 1, MAX_RANK),
        alpha=fields.number("lora_alpha", -1e6, 1e6),
        rank_pattern=_patterns(fields, "rank_pattern", lambda inner, name: inner.integer(name, 1, MAX_RANK)),
        alpha_pattern=_patterns(fields, "alpha_pattern", lambda inner, name: inner.number(name, -1e6, 1e6)),
        targets=_targets(fields),
        excluded=_names(fields, "exclude_modules"),
        layers=_layers(fields),
        root="root" if fields.flag("use_rslora", False) else "rank",
    )


def _check_lacking(fields: Fields) -> None:
    for name, value in fields.values.items():
        if name in _LACKING and value not in (None, False, [], {}, ""):
            raise refuse(f"{ADAPTER_CONFIG} {name!r} asks for {_LACKING[name]}, which is not supported")
        if name not in _LACKING and name not in _HARMLESS and name not in _READ and value not in (None, False, [], {}, ""):
            raise refuse(f"{ADAPTER_CONFIG} has a field {name[:64]!r} that is not known")
    bias = fields.text("bias", "none")
    if bias != "none":
        raise refuse(f"{ADAPTER_CONFIG} 'bias' is {bias[:32]!r}: adapters that change biases are not supported, only 'none' is")
    start = fields.values.get("init_lora_weights")
    if not (isinstance(start, str | bool) or start is None) or start not in _STARTS:
        raise refuse(
            f"{ADAPTER_CONFIG} 'init_lora_weights' is {str(start)[:32]!r}, a start that changes the base model; "
            "save the adapter converted to one of the unchanged base"
        )
    pattern = fields.values.get("layers_pattern")
    if pattern not in (None, "", [], "layers", ["layers"]):
        raise refuse(f"{ADAPTER_CONFIG} 'layers_pattern' is {str(pattern)[:64]!r}, the layers of this model are called 'layers'")


def _targets(fields: Fields) -> frozenset[str] | re.Pattern[str]:
    if fields.values.get("target_modules") == ALL_LINEAR:
        return frozenset(MODULE_KEYS.values())
    targets = _names(fields, "target_modules")
    if not isinstance(targets, re.Pattern):
        for name in sorted(targets):
            if name.rpartition(".")[2] in ("embed_tokens", "lm_head"):
                raise refuse(f"{ADAPTER_CONFIG} 'target_modules' names {name[:64]!r}: embeddings and heads can't be adapted")
        if not targets:
            raise refuse(f"{ADAPTER_CONFIG} 'target_modules' is missing")
    return targets


def _names(fields: Fields, name: str) -> frozenset[str] | re.Pattern[str]:
    """A list of names or one regular expression."""
    value = fields.values.get(name)
    if value is None:
        return frozenset()
    if isinstance(value, str):
        return compile_pattern(value, name)
    if not isinstance(value, Sequence) or len(value) > _MAX_PATTERNS or not all(isinstance(entry, str) for entry in value):
        raise refuse(f"{ADAPTER_CONFIG} {name!r} must be a pattern or a list of at most {_MAX_PATTERNS} names")
    return frozenset(value)


def _named(names: frozenset[str] | re.Pattern[str], key: str) -> bool:
    """Whether ``names`` have the key, or what stands behind one of its points: a few look-ups, however many names there are."""
    if isinstance(names, re.Pattern):
        return names.fullmatch(key) is not None
    while key not in names:
        _, point, key = key.partition(".")
        if not point:
            return False
    return True


def _layered(names: frozenset[str]) -> bool:
    """Whether one of them says which layer it means."""
    return any(name.startswith(("model.", "layers.")) or name[:1].isdigit() for name in names)


def _layers(fields: Fields) -> tuple[int, ...] | None:
    value = fields.values.get("layers_to_transform")
    if value is None or value == []:
        return None
    listed = value if isinstance(value, list) else [value]
    if len(listed) > _MAX_PATTERNS:
        raise refuse(f"{ADAPTER_CONFIG} 'layers_to_transform' has {len(listed)} entries, the limit is {_MAX_PATTERNS}")
    return tuple(Fields({"layers_to_transform": one}, ADAPTER_CONFIG).integer("layers_to_transform", 0, 1023) for one in listed)


def _patterns(fields: Fields, name: str, read: Callable[[Fields, str], _T]) -> dict[re.Pattern[str], _T]:
    inner = fields.group(name)
    if len(inner.values) > _MAX_PATTERNS:
        raise refuse(f"{ADAPTER_CONFIG} {name!r} has {len(inner.values)} entries, the limit is {_MAX_PATTERNS}")
    # As PEFT matches: the pattern may leave out leading parts of the name.
    return {re.compile(rf"(.*\.)?({compile_pattern(key, name).pattern})$"): read(inner, key) for key in inner.values}


def compile_pattern(text: str, field: str) -> re.Pattern[str]:
    """A regular expression from a file, if it can't keep a matcher busy: few repeats, none of a group, nothing looking back.

    Raises ``model_file`` naming ``field`` otherwise.
    """
    if len(text) > _MAX_PATTERN_CHARACTERS:
        raise refuse(f"{ADAPTER_CONFIG} {field!r} has a pattern of {len(text)} characters, the limit is {_MAX_PATTERN_CHARACTERS}")
    try:
        _check_simple(text)
        return re.compile(text)
    except (ValueError, RecursionError, OverflowError, re.error) as error:
        shown = str(error)[:80]
        raise refuse(f"{ADAPTER_CONFIG} {field!r} has the pattern {text[:64]!r}: {shown}; a list of names always works") from error


def _check_simple(text: str) -> None:
    repeats, index, after_group = 0, 0, False
    while index < len(text):
        sign, following = text[index], text[index + 1 : index + 3]
        index += 1
        if sign == "\\":
            if following[:1].isdigit():
                raise ValueError("references to groups are not supported")
            index += 1
        elif sign == "[":
            index = _class_end(text, index)
        elif sign in "*+{":
            repeats += 1
            if after_group:
                raise ValueError("a group must not be repeated")
        elif sign == "(" and following[:1] == "?":
            if following != "?:":
                raise ValueError("only (…) and (?:…) groups are supported")
            index += 2
        after_group = sign == ")"
    if repeats > _MAX_REPEATS:
        raise ValueError(f"{repeats} repeats, the limit is {_MAX_REPEATS}")


def _class_end(text: str, index: int) -> int:
    """The place behind a character class that begins before ``index``."""
    index += text[index : index + 1] == "^"
    index += text[index : index + 1] == "]"
    while index < len(text) and text[index] != "]":
        index += 2 if text[index] == "\\" else 1
    return index + 1
