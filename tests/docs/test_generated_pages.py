"""Nothing that exists is undocumented, and generated pages are fresh."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import headrace
from headrace.cli.documentation import pages
from headrace.cli.main import VERBS
from headrace.cli.options import SERVE_SETTINGS
from headrace.errors import ERROR_TABLE
from headrace.settings.declaration import Option, options_of
from headrace.settings.sources import public_options

ROOT = Path(headrace.__file__).parent.parent
DOCS = ROOT / "docs"
OPTIONS = list(public_options(SERVE_SETTINGS).values())


@pytest.mark.parametrize("name", ["options.md", "errors.md", "http.md", "results.md"])
def test_generated_pages_are_fresh(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == pages(ROOT)[name], f"docs/{name} is stale: run `make docs`"


def test_there_are_at_most_forty_public_options() -> None:
    assert 10 <= len(OPTIONS) <= 40


@pytest.mark.parametrize("declared", OPTIONS, ids=lambda declared: declared.name)
def test_each_option_is_declared_completely(declared: Option) -> None:
    assert declared.help.endswith("."), f"{declared.name}: help must be a sentence"
    assert declared.default is not None or declared.optional
    if declared.type in (int, float):
        assert declared.minimum is not None and declared.maximum is not None, f"{declared.name} has no bounds"  # noqa: PT018
    assert f"`{declared.flag}`" in (DOCS / "options.md").read_text(encoding="utf-8")


def test_defaults_keep_their_own_bounds() -> None:
    for kind in SERVE_SETTINGS:
        for declared in options_of(kind):
            assert getattr(kind(), declared.name) == declared.default


def test_each_room_has_one_sentence_on_the_structure_page() -> None:
    page = (DOCS / "structure.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "headrace").glob("*/__init__.py")}
    described = dict(re.findall(r"^- `(\w+)/` – (.+)$", page, re.MULTILINE))
    assert set(described) == rooms
    assert all(text.endswith(".") for text in described.values())


def test_the_life_of_a_request_has_at_most_ten_steps() -> None:
    page = (DOCS / "structure.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", page, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 5 <= len(numbers) <= 10


def test_each_verb_and_error_is_described() -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in [*DOCS.glob("*.md"), ROOT / "README.md"])
    for verb in VERBS:
        assert f"headrace {verb}" in everything, f"no page shows `headrace {verb}`"
    for code in ERROR_TABLE:
        assert f"`{code}`" in everything


def test_links_between_pages_lead_somewhere() -> None:
    for path in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+\.md)[^)]*\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_page_stands_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in DOCS.glob("*.md"):
        assert f" {path.name}" in navigation, f"{path.name} is not in mkdocs.yml"
