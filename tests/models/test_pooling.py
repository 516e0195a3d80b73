"""What a folder or a GGUF file says of a model that makes vectors of texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from headrace.errors import HeadraceError
from headrace.models.catalog import pull
from headrace.models.config_fields import config_fields
from headrace.models.folder_model import load_folder
from headrace.models.pooling import POOLING_FILE


def folder_that_says(tmp_path: Path, fields: dict[str, object]) -> Path:
    folder = write_tiny_model(tmp_path / "tiny")
    (folder / POOLING_FILE).parent.mkdir()
    (folder / POOLING_FILE).write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("fields", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_sentence_transformers_files_are_read(tmp_path: Path, fields: dict[str, object], pooling: str) -> None:
    config, _ = load_folder(folder_that_says(tmp_path, fields))
    assert config.pooling == pooling
    assert config_fields(config)["embedding_pooling"] == pooling


@pytest.mark.parametrize(
    "fields",
    [{"pooling_mode_cls_token": True}, {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, {}, {"pooling_mode": 3}],
)
def test_other_ways_are_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(HeadraceError) as refused:
        load_folder(folder_that_says(tmp_path, fields))
    assert refused.value.code == "model_file"


def test_a_folder_of_our_own_says_it_in_its_config(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    assert load_folder(folder)[0].pooling is None
    (folder / "config.json").write_text(json.dumps(config | {"embedding_pooling": "last"}))
    assert load_folder(folder)[0].pooling == "last"


def test_it_is_registered_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    card = pull(str(folder_that_says(tmp_path, {"pooling_mode": "lasttoken"})))
    assert card.path is not None
    assert load_folder(card.path)[0].pooling == "last"
