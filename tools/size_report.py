"""Report the sizes that keep a house readable, and fail where one is over its hard limit.

Limits: files of 400 lines (hard 450; tests 600), functions of 60 lines (hard) with a p90 of 25, 6 parameters (hard).
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOFT_FILE, HARD_FILE, TEST_FILE = 400, 450, 600
HARD_FUNCTION, TEST_FUNCTION, P90_FUNCTION, HARD_PARAMETERS = 60, 90, 25, 6


@dataclass(frozen=True, slots=True)
class Function:
    """One function: where it stands, lines from ``def`` to its end, parameters without self and keyword-only ones."""

    where: str
    lines: int
    parameters: int


def functions(path: Path) -> Iterator[Function]:
    """Every function of a file, nested ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", lines, count)


def line_count(path: Path) -> int:
    """Lines of a text file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def report(title: str, files: list[Path], hard_file: int, hard_function: int) -> list[str]:
    """Print one block of the report; the list of what is over a hard limit."""
    sizes = {path: line_count(path) for path in files}
    found = [function for path in files if path.suffix == ".py" for function in functions(path)]
    lengths = sorted(function.lines for function in found)
    p90 = lengths[int(len(lengths) * 0.9)] if lengths else 0
    middle = int(statistics.median(sizes.values())) if sizes else 0
    print(
        f"{title}: {len(files)} files, {sum(sizes.values()):,} lines, median file {middle}, {len(found)} functions, p90 {p90} lines"
    )
    for path, size in sizes.items():
        if SOFT_FILE < size <= hard_file:
            print(f"  over {SOFT_FILE} lines: {path.relative_to(ROOT)} ({size})")
    over = [f"{path.relative_to(ROOT)} has {size} lines (limit {hard_file})" for path, size in sizes.items() if size > hard_file]
    over += [
        f"{function.where} has {function.lines} lines (limit {hard_function})"
        for function in found
        if function.lines > hard_function
    ]
    over += [
        f"{function.where} has {function.parameters} parameters (limit {HARD_PARAMETERS})"
        for function in found
        if function.parameters > HARD_PARAMETERS and hard_function == HARD_FUNCTION
    ]
    if p90 > P90_FUNCTION and hard_function == HARD_FUNCTION:
        over.append(f"{title}: p90 of function length is {p90} (limit {P90_FUNCTION})")
    return over


def main() -> int:
    """Print the report; 1 when a hard limit is broken."""
    over = report("headrace", sorted((ROOT / "headrace").rglob("*.py")), HARD_FILE, HARD_FUNCTION)
    native = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".hpp", ".h"})
    over += report("csrc", native, HARD_FILE, HARD_FUNCTION)
    tests = report("tests", sorted((ROOT / "tests").rglob("*.py")), TEST_FILE, TEST_FUNCTION)
    for line in over + tests:
        print(f"OVER THE LIMIT: {line}")
    return 1 if over or tests else 0


if __name__ == "__main__":
    sys.exit(main())
