"""Families: metadata of either format becomes one description; what the chain lacks is refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import BOOL, F32, KIND_F32, STRING, U32, array, scalar, tensor, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_bytes import TINY_CONFIG, safetensors, tiny_folder, tiny_tensors

from headrace.errors import HeadraceError
from headrace.models.config import AttentionSpec, ModelConfig, RopeScaling
from headrace.models.families import expected_tensors
from headrace.models.folder_model import load_folder
from headrace.models.gguf_file import parse_gguf
from headrace.models.gguf_model import describe_gguf, half_split_order, load_gguf
from headrace.models.rope import inverse_frequencies, scaling_divisors
from headrace.models.weights import dequantise


def described(**changes: bytes | None) -> ModelConfig:
    return describe_gguf(parse_gguf(np.frombuffer(tiny_llama(**changes).build(), np.uint8)))[0]


def with_tensor(name: str, values: list[float]) -> bytes:
    made = tiny_llama()
    made.tensors.append(tensor(name, (len(values),), KIND_F32, len(made.data)))
    made.data += struct.pack(f"<{len(values)}f", *values)
    return made.build()


def test_gguf_metadata_becomes_a_config() -> None:
    config = described()
    attention = config.blocks[0]
    assert isinstance(attention, AttentionSpec)
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.scale) == (4, 2, 16, 0.25)
    assert (config.family, config.hidden, config.vocab, config.context_length, config.layers) == ("llama", 64, 8, 128, 1)
    assert (config.tied_head, config.bos_id, config.eos_ids) == (True, None, (7,))


def test_pooling_is_what_the_file_says() -> None:
    assert described().pooling is None
    assert [described(**{"llama.pooling_type": scalar(U32, kind)}).pooling for kind in (0, 1, 3)] == [None, "mean", "last"]


def test_end_of_turn_is_an_end_too() -> None:
    assert described(**{"tokenizer.ggml.eot_token_id": scalar(U32, 3)}).eos_ids == (7, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"general.architecture": scalar(STRING, "lama")},
            "'lama' is not supported; known are gemma3, llama.*did you mean 'llama'",
        ),
        ({"general.architecture": scalar(STRING, "gemma2")}, "did you mean 'gemma3'"),
        ({"general.architecture": None}, "general.architecture' is missing"),
        ({"general.architecture": scalar(U32, 5)}, "must be a string"),
        ({"llama.expert_count": scalar(U32, 8)}, "expert_count"),
        ({"llama.pooling_type": scalar(U32, 4)}, "known are 0 .none., 1 .mean. and 3"),
        ({"llama.final_logit_softcapping": scalar(F32, 30.0)}, "softcapping"),
        ({"llama.logit_scale": scalar(F32, 0.5)}, "'logit_scale' declares a feature that is not supported"),
        ({"llama.block_count": None}, "'block_count' is missing"),
        ({"llama.block_count": scalar(U32, 2**32 - 1)}, "integer from 1 to 1024"),
        ({"llama.block_count": scalar(BOOL, 1)}, "integer from 1 to 1024"),
        ({"llama.block_count": array(U32, [1])}, "integer from 1 to 1024"),
        ({"llama.embedding_length": scalar(U32, 0)}, "integer from 1 to 65536"),
        ({"llama.attention.head_count": scalar(U32, 3)}, "3 query heads can't share 2"),
        ({"llama.attention.key_length": scalar(U32, 15), "llama.attention.value_length": scalar(U32, 15)}, "15 is odd"),
        ({"llama.attention.value_length": scalar(U32, 8)}, "value_length' differs"),
        ({"llama.rope.dimension_count": scalar(U32, 8)}, "dimension_count' differs"),
        ({"llama.attention.layer_norm_rms_epsilon": scalar(F32, float("nan"))}, "number from 0 to 1"),
        ({"llama.rope.scaling.type": scalar(STRING, "yarn")}, "'yarn' is not supported"),
        ({"llama.feed_forward_length": scalar(U32, 95)}, "shape .96, 64., the metadata asks for .95, 64."),
        ({"llama.block_count": scalar(U32, 2)}, "'blk.1.attn_norm.weight' .layer.1.attention.norm. is missing"),
        ({"tokenizer.ggml.eos_token_id": scalar(U32, 8)}, "integer from 0 to 7"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(HeadraceError, match=message):
        described(**changes)


def test_a_tensor_that_no_block_would_use_is_refused() -> None:
    with pytest.raises(HeadraceError, match=r"'blk\.0\.attn_sinks\.weight' belongs to no part"):
        describe_gguf(parse_gguf(np.frombuffer(with_tensor("blk.0.attn_sinks.weight", [0.0] * 8), np.uint8)))


def test_llama3_divisors_are_recognised_or_refused() -> None:
    scaling = RopeScaling("llama3", 32.0)
    plain = 10_000.0 ** -(np.arange(0, 16, 2) / 16)
    divisors = scaling_divisors(plain, scaling).tolist()
    config, _ = describe_gguf(parse_gguf(np.frombuffer(with_tensor("rope_freqs.weight", divisors), np.uint8)))
    assert config.attention_blocks[0].rope_scaling == scaling
    for wrong in ([2.0, *divisors[1:]], [float("nan")] * 8, [1.0] * 4):
        with pytest.raises(HeadraceError, match=r"rope_freqs\.weight"):
            describe_gguf(parse_gguf(np.frombuffer(with_tensor("rope_freqs.weight", wrong), np.uint8)))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 40))
def test_row_order_joins_neighbours_into_halves(heads: int, half: int) -> None:
    order = half_split_order(heads, 2 * half)
    assert sorted(order) == list(range(2 * half * heads))
    for head in range(heads):
        own = order[head * 2 * half : (head + 1) * 2 * half] - head * 2 * half
        assert own[:half].tolist() == [2 * pair for pair in range(half)]
        assert own[half:].tolist() == [2 * pair + 1 for pair in range(half)]


def test_only_query_and_key_rows_are_permuted() -> None:
    _, weights = describe_gguf(parse_gguf(np.frombuffer(tiny_llama().build(), np.uint8)))
    assert {name for name in weights.names() if weights.tensor(name).row_order is not None} == {
        "layer.0.attention.q",
        "layer.0.attention.k",
    }
    raw = weights.tensor("layer.0.attention.k")
    stored = raw.data.view(np.float32).reshape(raw.shape)
    assert np.array_equal(dequantise(raw)[:3], stored[[0, 2, 4]])
    with pytest.raises(HeadraceError, match="no tensor 'head'"):
        weights.tensor("head")


@settings(deadline=None)
@given(st.sampled_from([16, 64, 128]), st.sampled_from([1e4, 1e5, 1e6]))
def test_frequencies_fall_from_one(head_dim: int, theta: float) -> None:
    frequencies = inverse_frequencies(AttentionSpec(1, 1, head_dim, 1.0, theta))
    assert frequencies.dtype == np.float32
    assert frequencies[0] == 1.0
    assert (np.diff(frequencies) < 0).all()
    halved = inverse_frequencies(AttentionSpec(1, 1, head_dim, 1.0, theta, RopeScaling("linear", 2.0)))
    assert np.allclose(halved * 2, frequencies, rtol=1e-6)


def test_folder_becomes_a_config(tmp_path: Path) -> None:
    config, weights = load_folder(tiny_folder(tmp_path, eos_token_id=[2, 5]))
    assert (config.hidden, config.vocab, config.layers, config.bos_id, config.eos_ids) == (8, 10, 1, 1, (2, 5))
    assert {name: weights.tensor(name).shape for name in weights.names()} == expected_tensors(config)
    assert {name: weights.outline(name).shape for name in weights.names()} == expected_tensors(config)
    assert np.array_equal(dequantise(weights.tensor("final_norm")), tiny_tensors()["model.norm.weight"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert load_folder(tmp_path)[0].eos_ids == (2, 5, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "'mixtral' is not supported; known are gemma3_text, llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "'model_type' is missing"),
        ({"attention_bias": True}, "'attention_bias' declares a feature"),
        ({"num_experts": 4}, "'num_experts' declares a feature"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'quantization_config' declares a feature"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "'auto_map' declares a feature"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not the 'silu' of llama"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": -4.0}}, "number from 1"),
        ({"rope_scaling": [1]}, "must be an object"),
        ({"hidden_size": "8"}, "integer from 1 to 65536, it is '8'"),
        ({"vocab_size": 11}, "shape .10, 8., config.json asks for .11, 8."),
        ({"tie_word_embeddings": False}, "'lm_head.weight' .head. is missing"),
        ({"tie_word_embeddings": "no"}, "true or false"),
        ({"sliding_window": 4, "layer_types": [["sliding_attention"]]}, "'layer_types' must be"),
        ({"eos_token_id": [2, 99]}, "integer from 0 to 9"),
    ],
)
def test_folder_faults_are_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match=message):
        load_folder(tiny_folder(tmp_path, **changes))


def test_left_over_buffers_of_older_files_are_no_fault(tmp_path: Path) -> None:
    tiny_folder(tmp_path)
    extra = tiny_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    (tmp_path / "model.safetensors").write_bytes(safetensors(extra))
    assert load_folder(tmp_path)[0].layers == 1
    (tmp_path / "model.safetensors").write_bytes(safetensors(extra | {"model.layers.0.mlp.router.weight": np.ones(2, np.float32)}))
    with pytest.raises(HeadraceError, match="router"):
        load_folder(tmp_path)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(TINY_CONFIG)),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers())),
)
def test_fuzz_fields_of_the_config(tmp_path_factory: pytest.TempPathFactory, name: str, value: object) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_folder(folder, **{name: value})
    try:
        config, code = load_folder(folder)[0], ""
    except HeadraceError as error:
        config, code = None, error.code
    assert config is not None or code == "model_file"


@pytest.mark.model
def test_both_packaged_models_are_what_they_are_known_to_be() -> None:
    from headrace.models.catalog import find_model

    path = find_model("smollm2").path
    assert path is not None
    config, weights, _ = load_gguf(path)
    assert (config.layers, config.hidden, config.vocab, config.context_length, config.eos_ids) == (30, 576, 49152, 8192, (2,))
    assert weights.tensor("layer.29.mlp.down").kind == "Q4_1"
    assert weights.tensor("embedding").kind == "Q8_0"


@pytest.mark.gemma
def test_gemma_layers_alternate_between_window_and_all() -> None:
    from headrace.models.catalog import find_model, open_model

    config = open_model(find_model("gemma3")).config
    blocks = config.attention_blocks
    assert [block.window for block in blocks] == [512, 512, 512, 512, 512, None] * 3
    assert {(block.window, block.rope_theta) for block in blocks} == {(512, 1e4), (None, 1e6)}
    assert config.embedding_scale == pytest.approx(640**0.5)
    assert blocks[0].qk_norm
    assert blocks[0].post_norm
