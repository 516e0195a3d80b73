"""The folder of a quantised model: whole, with a tokenizer, and only of what the config asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.errors import HeadraceError
from headrace.models.catalog import find_model, open_model
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.models.families import expected_tensors
from headrace.models.folder_model import load_folder
from headrace.models.quantised_matrix import QuantisationInfo, QuantisedMatrix
from headrace.quantization.format import copy_tokenizer, model_digest, write_model
from headrace.quantization.layers import round_matrix
from headrace.quantization.model import runtime_matrix
from headrace.quantization.recipe import Recipe
from headrace.text.open_tokenizer import open_tokenizer

TINY = ModelConfig("llama", 32, 40, 128, 1e-5, (AttentionSpec(1, 1, 32, 1 / 32**0.5, 1e4), MlpSpec(32, "silu")))


def test_tensors_that_the_config_does_not_have_are_refused(tmp_path: Path) -> None:
    odd = QuantisedMatrix("router", np.zeros((2, 32), np.int8), None, None, np.ones(2, np.float32), 0, 8)
    with pytest.raises(HeadraceError, match="'embedding' has shape None"):
        write_model(tmp_path, TINY, QuantisationInfo("a", 32, 8, ""), [odd], {})
    assert not list(tmp_path.iterdir())


@pytest.mark.model
def test_a_gguf_model_hands_on_its_tokenizer_and_template(tmp_path: Path) -> None:
    source = find_model("smollm2")
    assert source.path is not None
    copy_tokenizer(source.path, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HeadraceError, match="'model_type' is missing"):
        open_model(find_model(str(tmp_path)))
    from headrace.models.gguf_file import open_gguf

    copied, opened = open_gguf(tmp_path / "tokenizer.gguf"), open_model(source)
    assert not copied.tensors
    text = "The mill's wheel turns 42 times.\n"
    assert open_tokenizer(copied.metadata).encode(text) == open_tokenizer(opened.tokenizer_source).encode(text)
    assert copied.metadata["tokenizer.chat_template"] == opened.chat_template


@pytest.mark.parametrize("group", [32, 0])
def test_a_tensors_outline_is_the_tensor_without_its_bytes(group: int, tmp_path: Path) -> None:
    """What the cache of packed weights compares: it once failed for every quantised folder."""
    rng, matrices, vectors = np.random.default_rng(1), [], {}
    for name, shape in expected_tensors(TINY).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            vectors[name] = values
            continue
        recipe = Recipe(group if name.startswith("layer") else 0)
        matrices.append(runtime_matrix(name, round_matrix(values, recipe, None), 8))
    write_model(tmp_path, TINY, QuantisationInfo("a", group, 8, ""), matrices, vectors)
    _, weights = load_folder(tmp_path)
    for name in weights.names():
        whole, outline = weights.tensor(name), weights.outline(name)
        assert (outline.kind, outline.shape, outline.data.size) == (whole.kind, whole.shape, 0)


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"one")
    first = model_digest(tmp_path)
    assert first == model_digest(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"two")
    assert model_digest(tmp_path) != first
