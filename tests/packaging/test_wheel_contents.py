"""The list that `make wheel` holds a wheel against: it takes this package's files, and can refuse."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import headrace

ROOT = Path(headrace.__file__).parent.parent
KERNELS = "headrace/kernels/_native.cpython-311-x86_64-linux-gnu.so"


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "tools" / "check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources() -> list[str]:
    paths = (path for path in (ROOT / "headrace").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".so"))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_this_package_with_its_kernels_is_a_wheel(checker: ModuleType) -> None:
    assert checker.faults([*sources(), KERNELS, "headrace-0.1.0.dist-info/METADATA"], sources()) == []


@pytest.mark.parametrize(
    ("more", "less", "words"),
    [
        ([], "headrace/py.typed", "headrace/py.typed is missing"),
        ([], "headrace/server/console/page/index.html", "index.html is missing"),
        ([], KERNELS, "one kernel module is wanted, there are 0"),
        ([KERNELS.replace("311", "312")], "", "there are 2"),
        (["tests/test_floors.py"], "", "lies beside the package"),
        (["headrace/kernels/test_x.py"], "", "does not belong"),
        (["headrace/models/weights.gguf"], "", "does not belong"),
    ],
)
def test_what_a_wheel_is_refused_for(more: list[str], less: str, words: str, checker: ModuleType) -> None:
    names = [name for name in [*sources(), KERNELS, *more] if name != less]
    assert any(words in fault for fault in checker.faults(names, sources()))
