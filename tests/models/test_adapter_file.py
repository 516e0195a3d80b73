"""PEFT's folders: written and read back, and every way in which they may be wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors_bytes import safetensors

from headrace.errors import HeadraceError
from headrace.models.adapter import Adapter, LowRank, check_base, check_fits, decode_bf16, module_sides, round_bf16
from headrace.models.adapter_config import MODULE_KEYS, compile_pattern, parse_adapter_config
from headrace.models.adapter_file import MAX_PLANS, AdapterReader, read_adapter, write_adapter
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.models.quantised_folder import QuantisedWeights
from headrace.models.quantised_matrix import QuantisationInfo

CONFIG = ModelConfig(
    "llama", 64, 100, 64, 1e-5, (AttentionSpec(2, 1, 32, 1.0, 1e4), MlpSpec(96, "silu")) * 2
)  # fmt: skip
SIDES = module_sides(CONFIG)


@dataclass
class Folder:
    """A small adapter folder that a test may spoil before it is written."""

    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    kind: str = "F32"

    def read(self, path: Path) -> Adapter:
        (path / "adapter_config.json").write_text(json.dumps(self.fields))
        (path / "adapter_model.safetensors").write_bytes(safetensors(self.tensors, self.kind))
        return read_adapter(path, CONFIG)


def key(layer: int, name: str, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.{MODULE_KEYS[name]}.lora_{side}.weight"


def small(modules: str = "qv", rank: int = 4, **fields: object) -> Folder:
    generator = np.random.default_rng(1)
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
    made = Folder({"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": rank, "lora_alpha": 8, "bias": "none"})
    made.fields |= {"target_modules": [names[name] for name in modules]} | fields
    for layer in range(2):
        for name in modules:
            inputs, outputs = SIDES[layer][name]
            made.tensors[key(layer, name, "A")] = generator.standard_normal((rank, inputs), np.float32)
            made.tensors[key(layer, name, "B")] = generator.standard_normal((outputs, rank), np.float32)
    return made


def test_reads_what_peft_writes(tmp_path: Path) -> None:
    folder = small(use_dora=False, lora_dropout=0.1, layers_to_transform=None, peft_version="0.21.2", megatron_core="megatron.core")
    adapter = folder.read(tmp_path)
    assert adapter.base_model == "some/base"
    assert [sorted(layer) for layer in adapter.layers] == [["q", "v"]] * 2
    part = adapter.layers[1]["v"]
    assert (part.rank, part.scale) == (4, 2.0)
    np.testing.assert_allclose(decode_bf16(part.a), folder.tensors[key(1, "v", "A")], rtol=2**-8)
    expected = 2.0 * folder.tensors[key(1, "v", "B")] @ folder.tensors[key(1, "v", "A")]
    assert np.abs(part.delta() - expected).max() < 0.02 * np.abs(expected).max()
    assert adapter.parameters == 2 * 4 * (64 + 64 + 64 + 32)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_all_kinds_give_the_same_numbers(kind: str, tmp_path: Path) -> None:
    folder = small()
    exact = {name: decode_bf16(round_bf16(values)) for name, values in folder.tensors.items()}
    stored = {"F32": lambda v: v, "F16": lambda v: v.astype(np.float16), "BF16": round_bf16}[kind]
    folder.tensors, folder.kind = {name: stored(values) for name, values in exact.items()}, kind
    adapter = folder.read(tmp_path)
    # 2⁻⁹ of the values are too small for the exponent range of F16 and are rounded there.
    np.testing.assert_allclose(decode_bf16(adapter.layers[0]["q"].a), exact[key(0, "q", "A")], rtol=0 if kind != "F16" else 1e-2)


def test_scales_and_ranks(tmp_path: Path) -> None:
    settings = parse_adapter_config(
        {
            "peft_type": "LORA", "r": 16, "lora_alpha": 32, "use_rslora": True, "target_modules": "all-linear",
            "rank_pattern": {"layers.1.mlp.down_proj": 64, "q_proj": 4}, "alpha_pattern": {r".*\.self_attn\.(k|q)_proj": 8},
        }
    )  # fmt: skip
    down, q = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"
    assert (settings.rank_of(down), settings.rank_of(q), settings.rank_of("model.layers.0.mlp.down_proj")) == (64, 4, 16)
    assert settings.scale_of(down) == 32 / 8
    assert settings.scale_of(q) == 8 / 2
    assert settings.scale_of("model.layers.11.mlp.down_proj") == 32 / math.sqrt(16)
    assert settings.targeted(down, 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target_modules": "all-linear"}, "q k v o gate up down"),
        ({"target_modules": r".*\.layers\.\d+\.self_attn\.(q|v)_proj"}, "q v"),
        ({"target_modules": ["self_attn.o_proj", "down_proj"]}, "o down"),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1}, ""),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"], "layers_to_transform": [0, 1]}, "q"),
        ({"target_modules": ["q_proj", "no_such_module"]}, "q"),
    ],
)
def test_targets(fields: dict[str, object], expected: str) -> None:
    settings = parse_adapter_config({"peft_type": "LORA", "r": 1, "lora_alpha": 1} | fields)
    found = [name for name, module in MODULE_KEYS.items() if settings.targeted(f"model.layers.0.{module}", 0)]
    assert " ".join(found) == expected


@pytest.mark.parametrize("layers", [None, [0, 2]])
@pytest.mark.parametrize("excluded", [None, ["k_proj"], ["1.self_attn.q_proj"], r".*\.1\..*"])
@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["q_proj", "mlp.up_proj"], ["layers.2.mlp.up_proj", "k_proj"], ["model.layers.0.self_attn.q_proj"], ["x"]],
)
def test_what_is_changed_is_decided_at_once_as_one_by_one(targets: object, excluded: object, layers: object) -> None:
    settings = parse_adapter_config(
        {
            "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": targets, "exclude_modules": excluded,
            "layers_to_transform": layers,
        }
    )  # fmt: skip
    keys = [{name: f"model.layers.{layer}.{key}" for name, key in MODULE_KEYS.items()} for layer in range(4)]
    slow = tuple(tuple(name for name in own if settings.targeted(own[name], layer)) for layer, own in enumerate(keys))
    assert settings.changed(4) == slow


def test_written_folders_read_back_the_same(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    layers: list[dict[str, LowRank]] = []
    for layer, sides in enumerate(SIDES):
        layers.append({})
        for rank, (name, (inputs, outputs)) in enumerate(sides.items(), start=1 + layer):
            a, b = generator.standard_normal((rank, inputs)), generator.standard_normal((outputs, rank))
            layers[-1][name] = LowRank(round_bf16(a), round_bf16(b), float(np.float32(generator.uniform(0.1, 3))))
    del layers[1]["gate"]
    adapter = Adapter(tuple(layers), "a/b")
    for kind in ("BF16", "F32"):
        write_adapter(tmp_path / kind, adapter, kind)
        again = read_adapter(tmp_path / kind, CONFIG)
        assert again.base_model == "a/b"
        assert again.ranks == adapter.ranks
        for before, after in zip(adapter.layers, again.layers, strict=True):
            for name, part in before.items():
                assert after[name].a.tobytes() == part.a.tobytes()
                assert after[name].b.tobytes() == part.b.tobytes()
                assert after[name].scale == pytest.approx(part.scale, rel=1e-7)
    check_fits(again, CONFIG)
    with pytest.raises(HeadraceError, match="BF16 or F32"):
        write_adapter(tmp_path / "x", adapter, "F64")


Spoil = Callable[[Folder], object]
BAD: dict[str, tuple[str, Spoil]] = {
    "dora": ("'use_dora' asks for DoRA", lambda f: f.fields.update(use_dora=True)),
    "whole modules": ("'modules_to_save'", lambda f: f.fields.update(modules_to_save=["lm_head"])),
    "bias": ("'bias' is 'lora_only'", lambda f: f.fields.update(bias="lora_only")),
    "lora bias": ("'lora_bias'", lambda f: f.fields.update(lora_bias=True)),
    "transposed": ("'fan_in_fan_out'", lambda f: f.fields.update(fan_in_fan_out=True)),
    "pissa": ("'init_lora_weights' is 'pissa'", lambda f: f.fields.update(init_lora_weights="pissa")),
    "unknown": ("'new_idea' that is not known", lambda f: f.fields.update(new_idea=3)),
    "other method": ("'peft_type' is 'IA3'", lambda f: f.fields.update(peft_type="IA3")),
    "no rank": ("'r' is missing", lambda f: f.fields.pop("r")),
    "huge rank": ("'r' must be an integer from 1 to 4096", lambda f: f.fields.update(r=1 << 40)),
    "no alpha": ("'lora_alpha' is missing", lambda f: f.fields.pop("lora_alpha")),
    "no targets": ("'target_modules' is missing", lambda f: f.fields.pop("target_modules")),
    "head": ("names 'lm_head'", lambda f: f.fields["target_modules"].append("lm_head")),
    "embedding tensor": (
        "embedding or the head",
        lambda f: f.tensors.update({"base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((4, 4), np.float32)}),
    ),
    "magnitude": (
        "DoRA",
        lambda f: f.tensors.update({key(0, "q", "A").replace("A.weight", "magnitude_vector"): np.ones(4, np.float32)}),
    ),
    "strange tensor": ("'x' is none of", lambda f: f.tensors.update(x=np.ones(4, np.float32))),
    "not targeted": ("'target_modules' leaves out", lambda f: f.fields.update(target_modules=["q_proj"])),
    "half missing": (r"q_proj.lora_B.weight' is missing", lambda f: f.tensors.pop(key(0, "q", "B"))),
    "layer missing": (r"layers.1.*is missing", lambda f: [f.tensors.pop(name) for name in list(f.tensors) if "layers.1" in name]),
    "too many layers": (
        "is of layer 7, the model has 2 layers; .* another base model .some/base",
        lambda f: f.tensors.update({key(7, "q", "A"): np.ones((4, 64), np.float32)}),
    ),
    "other width": (
        r"has shape \[4, 128\], this model .* for \[4, 64\]; .* 'some/base'",
        lambda f: f.tensors.update({key(0, "q", "A"): np.ones((4, 128), np.float32)}),
    ),
    "other rank": (r"has shape \[4, 64\], .* ask for \[5, 64\]", lambda f: f.fields.update(r=5)),
    "nan": ("lora_B.weight' has a value that is infinite or not a number", lambda f: f.tensors[key(1, "v", "B")].fill(np.nan)),
    "infinite": ("lora_A.weight' has a value that is infinite", lambda f: f.tensors[key(1, "v", "A")].fill(-np.inf)),
    "no bfloat16": ("lora_A.weight' has a value that is infinite", lambda f: f.tensors[key(1, "v", "A")].fill(3.4028e38)),
    "list of layers": ("'layers_to_transform' must be an integer", lambda f: f.fields.update(layers_to_transform=["a"])),
    "layers called otherwise": ("'layers_pattern' is 'h'", lambda f: f.fields.update(layers_pattern="h")),
    "evil pattern": ("a group must not be repeated", lambda f: f.fields.update(target_modules="(a+)+b")),
    "evil ranks": ("'rank_pattern' has the pattern", lambda f: f.fields.update(rank_pattern={".*.*.*.*x": 4})),
    "rank of a pattern": ("'rank_pattern' 'q_proj' must be an integer", lambda f: f.fields.update(rank_pattern={"q_proj": 0})),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str, tmp_path: Path) -> None:
    message, spoil = BAD[name]
    folder = small()
    spoil(folder)
    with pytest.raises(HeadraceError, match=message) as caught:
        folder.read(tmp_path)
    assert caught.value.code == "model_file"


def test_refuses_damaged_files(tmp_path: Path) -> None:
    small().read(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    for data, message in (
        (whole[:-1], "offsets"),
        (whole[:100], "over the limit"),
        ((1 << 62).to_bytes(8, "little") + whole[8:], "over the limit"),
        (b"", "empty"),
    ):
        file.write_bytes(data)
        with pytest.raises(HeadraceError, match=message):
            read_adapter(tmp_path, CONFIG)
    file.unlink()
    with pytest.raises(HeadraceError, match="can't be opened"):
        read_adapter(tmp_path, CONFIG)
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(HeadraceError, match="never read"):
        read_adapter(tmp_path, CONFIG)
    file.write_bytes(whole)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(HeadraceError, match="not valid JSON"):
        read_adapter(tmp_path, CONFIG)


@pytest.mark.parametrize("pattern", ["(", "(?=a)", "(?P<x>a)", r"(a)\1", "a*b*c*d*", "(a|b)*", "(ab){9}", "x" * 2000])
def test_refuses_patterns_that_could_search_for_ever(pattern: str) -> None:
    with pytest.raises(HeadraceError, match="rank_pattern"):
        compile_pattern(pattern, "rank_pattern")


@pytest.mark.parametrize("pattern", [r".*\.(q|v)_proj", "[]a]+", "[^]b]", r"layers\.(1[0-9]|2)\.", "(?:a|b)?c", r"\(\*\+"])
def test_takes_patterns_in_use(pattern: str) -> None:
    assert compile_pattern(pattern, "rank_pattern").pattern == pattern


def test_adapters_of_other_sizes_don_t_fit(tmp_path: Path) -> None:
    adapter = small().read(tmp_path)
    with pytest.raises(HeadraceError, match="has 2 layers, the model has 1"):
        check_fits(adapter, ModelConfig("llama", 64, 100, 64, 1e-5, CONFIG.blocks[:2]))
    wide = ModelConfig("llama", 128, 100, 64, 1e-5, CONFIG.blocks)
    with pytest.raises(HeadraceError, match=r"layer 0 q: A \[4, 64\] .* another base model"):
        check_fits(adapter, wide)


def test_bases_with_moved_axes_are_refused() -> None:
    def quantised(method: str) -> QuantisedWeights:
        made = object.__new__(QuantisedWeights)
        made.info = QuantisationInfo(method, 64, 16, "")
        return made

    check_base(quantised("4-bit groups of 64, 16-bit activations, steps: plain rounding"))
    check_base(quantised("8 bits per channel, 16-bit activations, steps: clip, gptq"))
    with pytest.raises(HeadraceError, match="step 'rotate'"):
        check_base(quantised("4-bit groups of 64, 8-bit activations, steps: clip, rotate, gptq"))


def equal(one: Adapter, other: Adapter) -> bool:
    return one.base_model == other.base_model and all(
        mine.keys() == theirs.keys()
        and all(
            np.array_equal(mine[name].a, theirs[name].a)
            and np.array_equal(mine[name].b, theirs[name].b)
            and mine[name].scale == theirs[name].scale
            for name in mine
        )
        for mine, theirs in zip(one.layers, other.layers, strict=True)
    )


def test_a_reader_that_remembers_headers_reads_what_a_fresh_one_reads(tmp_path: Path) -> None:
    generator, reader, folders = np.random.default_rng(5), AdapterReader(CONFIG), []
    for number in range(3 * MAX_PLANS):
        path = tmp_path / str(number)
        path.mkdir()
        modules = "".join(generator.permutation(list("qkvo"))[: generator.integers(1, 5)])
        made = small(modules, rank=int(generator.integers(1, 6)), lora_alpha=int(generator.integers(1, 4)))
        made.tensors = {name: generator.standard_normal(values.shape, np.float32) for name, values in made.tensors.items()}
        made.read(path)
        folders.append(path)
    for index in generator.integers(0, len(folders), 6 * len(folders)):
        fresh = read_adapter(folders[index], CONFIG)
        assert equal(reader.read(folders[index]), fresh)
        assert reader.outline(folders[index]).parameters == fresh.parameters


def test_a_remembered_header_excuses_nothing(tmp_path: Path) -> None:
    reader, made = AdapterReader(CONFIG), small()
    made.read(tmp_path)
    first = reader.read(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    for data, message in (
        (whole[:-1], "offsets"),  # the same header over fewer bytes
        (whole.replace(b"layers.1", b"layers.7"), "layer 7"),
        (whole[:-4] + b"\0\0\xc0\x7f", "infinite or not a number"),
    ):
        file.write_bytes(data)
        with pytest.raises(HeadraceError, match=message):
            reader.read(tmp_path)
    file.write_bytes(whole)
    (tmp_path / "adapter_config.json").write_text(json.dumps(made.fields | {"lora_alpha": 4}))
    halved = reader.read(tmp_path)
    assert [part.scale for layer in halved.layers for part in layer.values()] == [
        part.scale / 2 for layer in first.layers for part in layer.values()
    ]
    (tmp_path / "adapter_config.json").write_text(json.dumps(made.fields | {"use_dora": True}))
    with pytest.raises(HeadraceError, match="DoRA"):
        reader.outline(tmp_path)
