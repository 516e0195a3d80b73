"""Quantised matrices: what their parts mean, what is refused, and the folder that keeps them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised_models import random_matrix, write_random_model
from safetensors_bytes import safetensors

from headrace.errors import HeadraceError
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig, RopeScaling
from headrace.models.config_fields import config_fields
from headrace.models.folder_model import load_folder
from headrace.models.integer_rows import kind_name, row_bytes
from headrace.models.quantised_folder import QuantisedWeights
from headrace.models.quantised_matrix import MatrixForm, QuantisationInfo, QuantisedMatrix, read_info
from headrace.models.weights import NO_BYTES, dequantise

TINY = ModelConfig(
    "llama", 64, 40, 128, 1e-5, (AttentionSpec(2, 1, 32, 1 / 32**0.5, 1e4), MlpSpec(96, "silu")), bos_id=1, eos_ids=(2, 3)
)


def slow_values(matrix: QuantisedMatrix) -> np.ndarray:
    """The definition, one weight after the other."""
    rows, inputs = matrix.shape
    values = np.zeros((rows, inputs), np.float32)
    for n in range(rows):
        for k in range(inputs):
            if matrix.group_scales is None or matrix.group_zeros is None:
                whole = int(matrix.codes[n, k])
            else:
                code = int(matrix.codes[n, k // 2]) >> 4 * (k % 2) & 15
                group = k // matrix.group
                whole = code * int(matrix.group_scales[n, group]) - int(matrix.group_zeros[n, group])
            values[n, k] = np.float32(whole) * matrix.channel_scales[n]
    return values


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.sampled_from([32, 96, 128, 160, 288]), st.sampled_from([0, 32, 64, 128]), st.sampled_from([8, 16]))
def test_values_and_encoded_rows_follow_the_definition(rows: int, inputs: int, group: int, bits: int) -> None:
    matrix = random_matrix("a", (rows, inputs), group, bits)
    expected = slow_values(matrix)
    raw = matrix.encode()
    assert np.array_equal(matrix.values(), expected)
    assert np.array_equal(dequantise(raw), expected)
    assert raw.row_bytes == row_bytes(raw.kind, inputs)
    assert raw.kind == kind_name(group, bits)
    order = np.arange(rows, dtype=np.int32)[::-1].copy()
    assert np.array_equal(dequantise(dataclasses.replace(raw, row_order=order)), expected[::-1])


def broken(**changes: object) -> QuantisedMatrix:
    return dataclasses.replace(random_matrix("a", (2, 64), 32), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_scales": np.array([1.0, np.nan], np.float32)}, "infinite or not a number"),
        ({"channel_scales": np.ones(3, np.float32)}, r"channel_scales must be float32 \[2\], it is float32 \[3\]"),
        ({"channel_scales": np.ones(2)}, "it is float64"),
        ({"group": 48}, "one of 32, 64, 128, not 48"),
        ({"group": 64}, r"group_scales must be uint8 \[2, 1\]"),
        ({"group_zeros": None}, "group_zeros must be .* missing"),
        ({"activation_bits": 12}, "8 or 16, not 12"),
        ({"codes": np.zeros((2, 20), np.uint8)}, "multiple of 32 inputs"),
        ({"codes": np.zeros((2, 64), np.int8)}, "8-bit codes have no groups"),
        ({"codes": np.zeros((2, 64), np.float32)}, "codes must be uint8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(HeadraceError, match=message) as caught:
        broken(**changes)
    assert caught.value.code == "model_file"


def test_sums_that_could_leave_32_bits_are_refused() -> None:
    inputs = 2048
    codes = np.full((1, inputs // 2), 255, np.uint8)
    # 15 · 255 + 4361 = 8186 a weight: 2048 · 8186 · 128 is just below 2^31
    scales, zeros = np.full((1, 32), 255, np.uint8), np.full((1, 32), 15 * 255 - 8186, np.int16)
    made = QuantisedMatrix("a", codes, scales, zeros, np.ones(1, np.float32), 64, 8)
    assert int(made.integers().sum()) * 128 < 2**31
    with pytest.raises(HeadraceError, match="channel 0 could leave 32 bits"):
        QuantisedMatrix("a", codes, scales, zeros - np.int16(10), np.ones(1, np.float32), 64, 8)


@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_a_written_model_loads_as_it_was_made(group: int, tmp_path: Path) -> None:
    config, weights = load_folder(write_random_model(tmp_path, TINY, group, 8))
    assert config == TINY
    assert isinstance(weights, QuantisedWeights)
    assert weights.info.method == "random"
    for index, name in enumerate(weights.names()):
        raw = weights.tensor(name)
        assert repr(weights.outline(name)) == repr(replace(raw, data=NO_BYTES))
        if len(raw.shape) == 2:
            own = 0 if name == "embedding" else group
            expected = random_matrix(name, (raw.shape[0], raw.shape[1]), own, seed=index)
            assert np.array_equal(dequantise(raw), expected.values()), name
            assert raw.kind == kind_name(own, 8)


def _family(name: str, **changes: object) -> ModelConfig:
    attention = AttentionSpec(4, 2, 32, 1 / 32**0.5, 1e6)
    first, second = dataclasses.replace(attention, **changes), attention  # type: ignore[arg-type]
    mlp = MlpSpec(96, "silu")
    return ModelConfig(name, 64, 40, 128, 1e-6, (first, mlp, second, mlp), tied_head=False, eos_ids=(3,))


LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 4096)
CONFIGS = {
    "llama": TINY,
    "llama with scaled rotation": dataclasses.replace(
        TINY, blocks=(AttentionSpec(2, 1, 32, 1 / 32**0.5, 5e5, LLAMA3), TINY.blocks[1])
    ),
    "mistral with windows": _family("mistral", window=16),
    "linear scaling": dataclasses.replace(
        TINY, blocks=(AttentionSpec(2, 1, 32, 0.25, 1e4, RopeScaling("linear", 2.0)), TINY.blocks[1])
    ),
    "gemma3": ModelConfig(
        "gemma3", 64, 40, 128, 1e-6,
        (
            AttentionSpec(2, 1, 32, 1 / 48**0.5, 1e4, window=8, qk_norm=True, post_norm=True), MlpSpec(96, "gelu_tanh", True),
            AttentionSpec(2, 1, 32, 1 / 48**0.5, 1e6, qk_norm=True, post_norm=True), MlpSpec(96, "gelu_tanh", True),
        ),
        embedding_scale=8.0, bos_id=2, eos_ids=(1,),
    ),
    "qwen2": dataclasses.replace(
        TINY, family="qwen2", blocks=(AttentionSpec(2, 1, 32, 1 / 32**0.5, 1e6, qkv_bias=True), TINY.blocks[1])
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_description_survives_being_written(name: str, tmp_path: Path) -> None:
    assert load_folder(write_random_model(tmp_path, CONFIGS[name], 32, 16))[0] == CONFIGS[name]
    assert json.loads(json.dumps(config_fields(CONFIGS[name])))["model_type"].startswith(CONFIGS[name].family)


def rewrite(folder: Path, info: str | None, changes: dict[str, np.ndarray | None]) -> None:
    """The folder's file again with other tensors or another metadata text."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: values for name, values in (load_file(path) | changes).items() if values is not None}
    text = info if info is not None else QuantisationInfo("random", 32, 8, "00", {"embedding": MatrixForm(0, 8)}).to_json()
    save_file(tensors, path, {"headrace_quantisation": text})


Q = "layer.0.attention.q"


@pytest.mark.parametrize(
    ("info", "changes", "message"),
    [
        ("{", {}, "not valid JSON"),
        ("{}", {}, "'version' is missing"),
        ('{"version": 2}', {}, "of version 2, this headrace reads 1"),
        (QuantisationInfo("a", 7, 8, "").to_json(), {}, "one of 32, 64, 128, not 7"),
        (QuantisationInfo("a", 32, 9, "").to_json(), {}, "8 or 16, not 9"),
        ('{"version":1,"method":"a","group":32,"activation_bits":8,"source_digest":"","forms":{"q":[1]}}', {}, "for 'q'"),
        (None, {f"{Q}.codes": None}, "lacks its codes"),
        (None, {f"{Q}.channel_scales": np.full(64, np.inf, np.float32)}, "infinite or not a number"),
        (None, {f"{Q}.codes": np.zeros((64, 64), np.int8)}, "8-bit codes have no groups"),
        (None, {f"{Q}.codes": np.zeros((32, 32), np.uint8)}, r"channel_scales must be float32 \[32\]"),
        (None, {f"{Q}.group_zeros": np.zeros((64, 2), np.int8)}, "is of kind I8, it must be I16"),
        (None, {"layer.0.attention.norm": None}, r"'layer.0.attention.norm' must be F32 \[64\]"),
        (None, {"final_norm": np.full(64, np.nan, np.float32)}, "'final_norm' has a value that is infinite"),
        (None, {"layer.0.mlp.router": np.zeros(3, np.float32)}, "'layer.0.mlp.router' belongs to no part"),
    ],
)
def test_damaged_folders_are_refused(info: str | None, changes: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    rewrite(write_random_model(tmp_path, TINY, 32, 8), info, changes)
    with pytest.raises(HeadraceError, match=message) as caught:
        read_everything(tmp_path)
    assert caught.value.code == "model_file"


def read_everything(folder: Path) -> None:
    _, weights = load_folder(folder)
    for name in weights.names():
        weights.tensor(name)


def test_integer_tensors_without_their_metadata_are_no_weights(tmp_path: Path) -> None:
    from safetensors_bytes import tiny_folder, tiny_tensors

    tiny_folder(tmp_path)
    tensors = tiny_tensors()
    name = "model.layers.0.mlp.up_proj.weight"
    (tmp_path / "model.safetensors").write_bytes(safetensors({key: tensors[key] for key in tensors if key != name}))
    from safetensors.numpy import save_file

    save_file(tensors | {name: np.zeros((12, 8), np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(HeadraceError, match="is of kind I8; without 'headrace_quantisation'"):
        load_folder(tmp_path)


@settings(deadline=None, max_examples=100)
@given(
    st.text(max_size=40)
    | st.dictionaries(st.sampled_from(["version", "group", "forms", "method"]), st.integers(0, 200)).map(json.dumps)
)
def test_fuzz_metadata_is_read_or_refused(text: str) -> None:
    try:
        read_info(text)
        code = "model_file"
    except HeadraceError as error:
        code = error.code
    assert code == "model_file"
