"""What nothing in the package may do: read objects that run code, evaluate text, or start a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace

PACKAGE = Path(headrace.__file__).parent
MODULES = frozenset(
    {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "multiprocessing", "jsonpickle"}
)
CALLS = frozenset({"eval", "exec", "compile", "__import__"})
METHODS = frozenset({("torch", "load"), ("numpy", "load"), ("np", "load"), ("yaml", "load"), ("os", "system"), ("os", "popen")})
SAFE = frozenset({"allow_pickle=False", "Loader=UniqueKeys"})


def forbidden(source: str) -> Iterator[str]:
    """What a module's source does that it must not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.module or ""
        elif isinstance(node, ast.Call):
            yield from _called(node)


def _called(node: ast.Call) -> Iterator[str]:
    what = node.func
    if isinstance(what, ast.Name) and what.id in CALLS:
        yield what.id
    safe = any(ast.unparse(word) in SAFE for word in node.keywords)
    if isinstance(what, ast.Attribute) and isinstance(what.value, ast.Name) and (what.value.id, what.attr) in METHODS and not safe:
        yield f"{what.value.id}.{what.attr}"
    if any(
        word.arg == "shell" and not (isinstance(word.value, ast.Constant) and word.value.value is False) for word in node.keywords
    ):
        yield "shell"


def test_nothing_in_the_package_runs_what_it_reads() -> None:
    found = [f"{path.relative_to(PACKAGE)}: {what}" for path in PACKAGE.rglob("*.py") for what in forbidden(path.read_text())]
    assert found == []


def test_the_loader_of_settings_makes_plain_values_only() -> None:
    assert "class UniqueKeys(yaml.SafeLoader)" in (PACKAGE / "settings" / "sources.py").read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "torch.load(x)",
        "run('ls', shell=True)",
        "import multiprocessing.queues",
    ],
)
def test_it_would_be_found(source: str) -> None:
    assert list(forbidden(source))
