"""Merging defaults, file, environment and flags, with the origin of each value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import HeadraceError
from headrace.settings.declaration import option, validate
from headrace.settings.sources import Effective, Sources, merge, public_options


@dataclass(frozen=True, slots=True)
class Door:
    port: int = option(8080, minimum=0, maximum=65535, help="Port.")
    hosts: tuple[str, ...] = option((), help="Hosts.")
    quiet: bool = option(False, help="Quiet.")
    hidden: int = option(1, help="Not for users.", public=False)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True)
class Pool:
    pool_mib: int = option(64, unit="MiB", minimum=1, help="Pool.")
    budget: float | None = option(None, unit="ms", minimum=0.0, help="Budget.")

    def __post_init__(self) -> None:
        validate(self)


def merged(file: Path | None = None, environment: dict[str, str] | None = None, **flags: Any) -> Effective:
    return merge([Door, Pool], Sources(flags, environment or {}, file))


def test_later_sources_win_and_each_origin_is_known(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("port: 1\nhosts: [a, b]\npool_mib: 7\nbudget: 5\n")
    effective = merged(file, {"HEADRACE_PORT": "2", "HEADRACE_POOL_MIB": "8", "PATH": "/bin"}, port=3)
    assert effective.of(Door) == Door(port=3, hosts=("a", "b"))
    assert effective.of(Pool) == Pool(pool_mib=8, budget=5)
    sources = {origin.option.name: origin.source for origin in effective.origins}
    assert sources == {
        "port": "--port",
        "hosts": "mine.yaml",
        "quiet": "default",
        "pool_mib": "HEADRACE_POOL_MIB",
        "budget": "mine.yaml",
    }


def test_a_whole_number_in_a_file_is_an_element_of_a_list_of_texts(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, hosts in (("hosts: 2", ("2",)), ("hosts: [1, b]", ("1", "b")), ("hosts: prefill", ("prefill",))):
        file.write_text(text)
        assert merged(file).of(Door).hosts == hosts
    file.write_text("hosts: [true]")
    with pytest.raises(HeadraceError, match="hosts must be str, not bool"):
        merged(file)


def test_text_is_parsed_by_type() -> None:
    environment = {"HEADRACE_HOSTS": "a, b,", "HEADRACE_QUIET": "yes", "HEADRACE_BUDGET": "none"}
    effective = merged(environment=environment, port="9")
    assert effective.of(Door) == Door(port=9, hosts=("a", "b"), quiet=True)
    assert effective.of(Pool).budget is None


def test_config_variable_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("port: 5")
    assert merged(environment={"HEADRACE_CONFIG": str(tmp_path / "c.yaml")}).of(Door).port == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prot: 1", "c.yaml: unknown key 'prot'; did you mean 'port'?"),
        ("port: 70000", "c.yaml: port must be at most 65,535"),
        ("port: '1'", "c.yaml: port must be int, not str"),
        ("port: 1\nport: 2", "c.yaml: key 'port' is given twice"),
        ("hidden: 2", "unknown key 'hidden'"),
        ("- 1", "must hold"),
        ("port: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("port: null", "needs a value"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(HeadraceError) as caught:
        merged(file)
    assert words in caught.value.message
    assert caught.value.code == "invalid_setting"


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({"HEADRACE_PROT": "1"}, {}, "unknown environment variable 'HEADRACE_PROT'; did you mean 'HEADRACE_PORT'?"),
        ({"HEADRACE_PORT": "x"}, {}, "HEADRACE_PORT: port must be a whole number, not 'x'"),
        ({"HEADRACE_QUIET": "maybe"}, {}, "HEADRACE_QUIET: quiet must be true or false"),
        ({}, {"pool_mbi": 1}, "unknown option '--pool-mbi'; did you mean '--pool-mib'?"),
        ({}, {"budget": "fast"}, "--budget: budget must be a number, not 'fast'"),
        ({}, {"budget": "inf"}, "--budget: budget must be a finite number"),
    ],
)
def test_bad_variables_and_flags_are_refused(environment: dict[str, str], flags: dict[str, Any], words: str) -> None:
    with pytest.raises(HeadraceError) as caught:
        merged(environment=environment, **flags)
    assert words in caught.value.message


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="can't read"):
        merged(tmp_path / "none.yaml")


def test_one_name_belongs_to_one_class() -> None:
    with pytest.raises(TypeError, match="another settings class"):
        public_options([Door, Door])
