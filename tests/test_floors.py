"""The house has floors: imports go down only, and the serving path knows no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import headrace

PACKAGE = Path(headrace.__file__).parent
# Each room may import from rooms of a lower floor and from itself; rooms of one floor don't know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("server", "evaluation"),
    ("quantization",),
    ("instances",),
    ("engine",),
    ("training",),
    ("speculation",),
    ("kernels",),
    ("planning",),
    ("scheduling",),
    ("memory", "models", "text", "placement"),
    ("settings",),
    ("errors",),
)


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.lineno, node.module or ""


def rooms() -> set[str]:
    return {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}


def test_every_room_has_a_floor() -> None:
    known = {room for floors in FLOORS for room in floors}
    assert rooms() | {"errors"} == known


def test_imports_go_down_only() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("__init__", "__main__"):
            continue
        for line, name in imported(path):
            pieces = name.split(".")
            if pieces[0] != "headrace" or len(pieces) == 1 or pieces[1] == parts[0]:
                continue
            if floor(pieces[1]) <= floor(parts[0]):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports headrace.{pieces[1]}")
    assert not wrong, "\n".join(wrong)


def test_pure_rooms_import_nothing_heavy() -> None:
    for room in ("scheduling", "placement", "settings"):
        for path in (PACKAGE / room).rglob("*.py"):
            for line, name in imported(path):
                assert name.split(".")[0] in {"headrace", "yaml", *sys.stdlib_module_names}, f"{path}:{line} imports {name}"


def test_serving_path_imports_no_torch() -> None:
    code = "import sys; import headrace.server.app, headrace.cli.serve; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_quick_and_imports_no_server() -> None:
    code = (
        "import sys; from headrace.cli.main import run; run(['--help']);"
        "heavy = {'numpy', 'starlette', 'torch', 'tokenizers', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
