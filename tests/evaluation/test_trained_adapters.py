"""Adapters trained on real text: that they are trained, and the same each time; and what the experiment compares them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.evaluation import trained_adapters as made
from headrace.evaluation.adapter_speed import random_adapter
from headrace.evaluation.experiments._s_lora_setup import RANKS, mixed_shapes
from headrace.evaluation.trained_adapters import RECIPES
from headrace.models.adapter import MODULES, decode_bf16
from headrace.models.adapter_file import read_adapter
from headrace.models.catalog import find_model, open_model


def test_every_rank_meets_every_target_set_and_every_text_is_there() -> None:
    assert len(RECIPES) >= 16
    assert len({(recipe.rank, recipe.modules) for recipe in RECIPES}) == 16
    assert {recipe.rank for recipe in RECIPES} == set(RANKS)
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
    assert all(len(recipe.text()) > 4000 for recipe in RECIPES)


@pytest.mark.torch
@pytest.mark.model
def test_training_lowers_the_loss_and_is_repeatable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(made, "STEPS", 2)
    monkeypatch.setattr(made, "WINDOW", 16)
    model = open_model(find_model("smollm2"))
    seen: list[tuple[str, int, int]] = []
    folders = [one.folder for one in made.trained_adapters(model, 1, lambda *note: seen.append(note))]
    assert [one[1:] for one in seen] == [(0, 2), (1, 2)]
    first = read_adapter(folders[0], model.config)
    assert {name for layer in first.layers for name in layer} == set(RECIPES[0].modules)
    assert all(np.any(decode_bf16(part.b)) for layer in first.layers for part in layer.values())
    before = (folders[0] / "adapter_model.safetensors").read_bytes()
    made.trained_adapters(model, 1, lambda *note: pytest.fail("it is there already"))
    (folders[0] / "adapter_config.json").unlink()
    made.trained_adapters(model, 1, lambda *note: None)
    assert (folders[0] / "adapter_model.safetensors").read_bytes() == before


def test_random_adapters_change_what_they_are_asked_to() -> None:
    config = open_model(find_model("smollm2")).config
    found = random_adapter(config, 4, 1, ("q", "down"))
    assert all(set(layer) == {"q", "down"} for layer in found.layers)
    shapes = mixed_shapes(40)
    assert {rank for rank, _ in shapes} == {4, *RANKS}
    assert {name for _, names in shapes for name in names} == set(MODULES)
