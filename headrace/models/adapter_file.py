"""Adapters as PEFT's folders: ``adapter_config.json`` beside ``adapter_model.safetensors``. Nothing in them is ever executed."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headrace.errors import HeadraceError
from headrace.models.adapter import MODULES, Adapter, Codes, LowRank, Sides, decode_bf16, module_sides, round_bf16
from headrace.models.adapter_config import ADAPTER_CONFIG, MODULE_KEYS, AdapterConfig, parse_adapter_config
from headrace.models.config import ModelConfig
from headrace.models.files import FileIdentity, identify, map_file, read_limited, refuse
from headrace.models.safetensors_file import header_of, parse_json, parse_safetensors
from headrace.models.safetensors_writer import replace_file, write_safetensors
from headrace.models.weights import RawBytes

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_PLANS = 16
"""Kinds of adapters whose headers a reader remembers."""

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(?:model\.)?layers\.(\d{1,4})\.([a-z_.]{1,32})\.lora_([AB])\.weight")
_SHORT_NAMES = {key: name for name, key in MODULE_KEYS.items()}


class _Slot(NamedTuple):
    """Where a tensor stands in its file: bytes ``start`` to ``end``."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


class _Pair(NamedTuple):
    """Both tensors of one module."""

    a: _Slot
    b: _Slot
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterOutline:
    """What an adapter's files say without their numbers: ``ranks`` by layer and module, parameters, the base model's name."""

    ranks: tuple[Mapping[str, int], ...]
    parameters: int
    base_model: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """What settings and header together say, checked: the same for all files with the same ones."""

    layers: tuple[Mapping[str, _Pair], ...]
    outline: AdapterOutline


# (layer, module, "A" or "B")
_Place = tuple[int, str, str]


def identify_adapter(folder: Path) -> tuple[FileIdentity, FileIdentity]:
    """Tells one state of an adapter's two files from every other: settings change its scale without touching its numbers."""
    return identify(folder / ADAPTER_CONFIG), identify(folder / ADAPTER_WEIGHTS)


class AdapterReader:
    """Opens adapters for one model. Checked headers are remembered: of many alike only the first is taken apart.

    Both calls raise ``model_file`` naming what is wrong: a field or tensor that is unsupported, missing or damaged, a matrix that
    fits another base model, a value that is no finite number. May be used by several threads.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._plans: OrderedDict[bytes, _Plan] = OrderedDict()
        self._lock = threading.Lock()

    def outline(self, folder: Path) -> AdapterOutline:
        """Check everything of an adapter but its values, which are not read: cheap, for registering many."""
        return self._plan(folder)[0].outline

    def read(self, folder: Path) -> Adapter:
        """All of it; values that are not bfloat16 are rounded to it. Matrices in bfloat16 stay views of the mapped file."""
        plan, file = self._plan(folder)
        read = tuple(
            {name: LowRank(_codes(pair.a, file), _codes(pair.b, file), pair.scale) for name, pair in layer.items()}
            for layer in plan.layers
        )
        return Adapter(read, plan.outline.base_model)

    def _plan(self, folder: Path) -> tuple[_Plan, RawBytes]:
        """What the files say, and the bytes of the weights' file."""
        settings = read_limited(folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES)
        if not (folder / ADAPTER_WEIGHTS).is_file() and (folder / "adapter_model.bin").exists():
            raise refuse(
                f"the adapter has no {ADAPTER_WEIGHTS}; adapter_model.bin is a pickle, which is never read: save it as safetensors"
            )
        file = map_file(folder / ADAPTER_WEIGHTS)
        # All that a check looks at: the settings, the header, and how long the file is.
        key = hashlib.blake2b(settings + b"\0" + header_of(file), salt=file.size.to_bytes(8, "little")).digest()
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
        if plan is None:
            plan = _make_plan(parse_adapter_config(parse_json(settings, ADAPTER_CONFIG)), file, self._config)
            with self._lock:
                self._plans[key] = plan
                if len(self._plans) > MAX_PLANS:
                    self._plans.popitem(last=False)
        return plan, file


def read_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """As :meth:`AdapterReader.read`, once."""
    return AdapterReader(config).read(folder)


def write_adapter(folder: Path, adapter: Adapter, kind: str = "BF16") -> None:
    """Write a folder that PEFT and :func:`read_adapter` open: the same numbers in ``BF16`` or, for older readers, ``F32``.

    The folder is made if need be. Ranks and scales that differ between modules go into ``rank_pattern`` and ``alpha_pattern``.
    """
    if kind not in ("BF16", "F32"):
        raise HeadraceError("invalid_value", f"adapters are written as BF16 or F32, not {kind[:32]!r}", param="kind")
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
    for index, layer in enumerate(adapter.layers):
        for name, part in layer.items():
            for side, codes in (("A", part.a), ("B", part.b)):
                arrays[f"{_PREFIX}{_key(index, name)}.lora_{side}.weight"] = codes if kind == "BF16" else decode_bf16(codes)
    folder.mkdir(parents=True, exist_ok=True)
    # The config last: a folder that has one is whole.
    write_safetensors(folder / ADAPTER_WEIGHTS, arrays, {"format": "pt"})
    replace_file(folder / ADAPTER_CONFIG, json.dumps(_config_fields(adapter), indent=2).encode())


def _make_plan(settings: AdapterConfig, file: RawBytes, config: ModelConfig) -> _Plan:
    """Find the tensors of every changed module and check everything but their values."""
    first = file.ctypes.data
    tensors = _by_place(
        {
            name: _Slot(name, tensor.kind, tensor.shape, at := tensor.data.ctypes.data - first, at + tensor.data.size)
            for name, tensor in parse_safetensors(file).items()
        }
    )
    sides = module_sides(config)
    changed = settings.changed(len(sides))
    _check_layers(tensors, settings, changed)
    layers = tuple(
        _find_layer(index, {name: own[name] for name in changed[index]}, settings, tensors) for index, own in enumerate(sides)
    )
    if not any(layers):
        raise refuse("the adapter changes no module of this model")
    ranks = tuple({name: pair.a.shape[0] for name, pair in layer.items()} for layer in layers)
    numbers = sum(math.prod(slot.shape) for layer in layers for pair in layer.values() for slot in (pair.a, pair.b))
    return _Plan(layers, AdapterOutline(ranks, numbers, settings.base_model))


def _key(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{MODULE_KEYS[name]}"


def _by_place(tensors: Mapping[str, _Slot]) -> dict[_Place, _Slot]:
    places: dict[_Place, _Slot] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match[2] not in _SHORT_NAMES:
            raise refuse(f"tensor {name[:128]!r} {_reason(name)}")
        place = (int(match[1]), _SHORT_NAMES[match[2]], match[3])
        if place in places:
            raise refuse(f"tensor {name[:128]!r} stands in the file twice, under another prefix")
        places[place] = tensor
    return places


def _reason(name: str) -> str:
    if "lora_magnitude" in name:
        return "is the magnitude of DoRA, which is not supported"
    if "lora_embedding" in name or "embed_tokens" in name or "lm_head" in name:
        return "changes the embedding or the head, which can't be adapted"
    if name.endswith(".bias"):
        return "is a bias, adapters that change biases are not supported"
    return f"is none of the base model's {', '.join(MODULE_KEYS.values())} with lora_A or lora_B"


def _check_layers(tensors: Mapping[_Place, _Slot], settings: AdapterConfig, changed: Sequence[Sequence[str]]) -> None:
    for (layer, name, _), tensor in tensors.items():
        if layer >= len(changed):
            raise refuse(
                f"tensor {tensor.name[:128]!r} is of layer {layer}, the model has {len(changed)} layers; it was made for another "
                f"base model ({settings.base_model[:64] or 'not named'})"
            )
        if name not in changed[layer]:
            raise refuse(f"tensor {tensor.name[:128]!r} belongs to a module that {ADAPTER_CONFIG} 'target_modules' leaves out")


def _find_layer(
    layer: int, sides: Mapping[str, Sides], settings: AdapterConfig, tensors: Mapping[_Place, _Slot]
) -> dict[str, _Pair]:
    found: dict[str, _Pair] = {}
    for name, (inputs, outputs) in sides.items():
        key = _key(layer, name)
        rank = settings.rank_of(key)
        a, b = tensors.get((layer, name, "A")), tensors.get((layer, name, "B"))
        if a is None or b is None:
            missing = f"{_PREFIX}{key}.lora_{'A' if a is None else 'B'}.weight"
            raise refuse(f"tensor {missing!r} is missing, {ADAPTER_CONFIG} 'target_modules' asks for it")
        _check_tensor(a, (rank, inputs), settings)
        _check_tensor(b, (outputs, rank), settings)
        found[name] = _Pair(a, b, float(np.float32(settings.scale_of(key))))
    return found


def _check_tensor(tensor: _Slot, shape: Sides, settings: AdapterConfig) -> None:
    if tensor.shape != shape:
        raise refuse(
            f"tensor {tensor.name[:128]!r} has shape {list(tensor.shape)}, this model and {ADAPTER_CONFIG} ask for {list(shape)}; "
            f"the adapter names the base model {settings.base_model[:64]!r}"
        )
    if tensor.kind not in ("F32", "F16", "BF16"):
        raise refuse(f"tensor {tensor.name[:128]!r} is of kind {tensor.kind}, adapters are F32, F16 or BF16")


def _codes(slot: _Slot, file: RawBytes) -> Codes:
    codes = _bf16(slot.kind, file[slot.start : slot.end]).reshape(slot.shape)
    if ((codes & np.uint16(0x7F80)) == 0x7F80).any():
        raise refuse(f"tensor {slot.name[:128]!r} has a value that is infinite or not a number")
    return codes


def _bf16(kind: str, data: RawBytes) -> Codes:
    """The values as codes of bfloat16: a view where the file has such. What is no number stays none."""
    word = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[kind]
    # A file may begin its words at an odd place.
    data = data if data.ctypes.data % np.dtype(word).itemsize == 0 else data.copy()
    if kind == "BF16":
        return np.asarray(data.view(np.uint16))
    values = data.view(word)
    if not np.isfinite(values).all():  # rounding would carry some NaN into finite codes
        return np.full(values.shape, 0x7FC0, np.uint16)
    return round_bf16(values)


def _config_fields(adapter: Adapter) -> dict[str, object]:
    parts = {_key(index, name): part for index, layer in enumerate(adapter.layers) for name, part in layer.items()}
    first = next(iter(parts.values()))
    rank, alpha = first.rank, first.scale * first.rank
    used = [name for name in MODULES if any(name in layer for layer in adapter.layers)]
    whole = all(list(layer) == list(adapter.layers[0]) for layer in adapter.layers)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        # Without exceptions by the short names that PEFT uses itself, else one by one.
        "target_modules": [MODULE_KEYS[name].rpartition(".")[2] for name in used] if whole else list(parts),
        "rank_pattern": {key: part.rank for key, part in parts.items() if part.rank != rank},
        "alpha_pattern": {key: part.scale * part.rank for key, part in parts.items() if part.scale * part.rank != alpha},
    }
