"""Object files of one instruction set keep to themselves: what the linker may merge with common code must not be theirs.

Of functions with one name in several object files the linker keeps any one. Were such a function in a file compiled for
AVX-512, the process could end by an illegal instruction on a CPU without it, far from every check.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BUILDS = [path for name in ("dev", "clang") if (path := ROOT / "build" / name / "CMakeFiles").is_dir()]
HELPERS = {"__clang_call_terminate"}  # clang's: two calls, no vector, whatever the flags
VECTOR = re.compile(r"%[yz]mm|%k[1-7]\b|\bv[a-z0-9]+ .*%xmm")

pytestmark = [
    pytest.mark.skipif(not BUILDS, reason="no build folder: `make native` makes one"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="binutils are not installed"),
]


def objects(folder: Path) -> list[str]:
    """Of sources that still exist: what they leave behind when they go is not linked."""
    found = sorted(folder.rglob("*.o"))
    return [str(path) for path in found if (ROOT / path.relative_to(folder).with_suffix("")).exists()]


def output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout


def shared_code(files: list[str]) -> set[str]:
    """Names of functions that other files may define too, or may use."""
    lines = output("nm", "-C", "--defined-only", *files).splitlines()
    found = (re.match(r"[0-9a-f]+ ([WTi]) (.*)", line) for line in lines)
    return {match[2] for match in found if match} - HELPERS


@pytest.mark.parametrize("build", BUILDS, ids=lambda path: path.parent.name)
def test_code_of_an_instruction_set_has_its_name(build: Path) -> None:
    looked_at = 0
    for folder in build.glob("headrace_*.dir"):
        if files := objects(folder):
            own = f"headrace::{folder.stem.removeprefix('headrace_')}::"
            assert not [name for name in shared_code(files) if own not in name], folder
            looked_at += 1
    assert looked_at


@pytest.mark.parametrize("build", BUILDS, ids=lambda path: path.parent.name)
def test_common_code_is_for_every_cpu(build: Path) -> None:
    common = objects(build / "_native.dir") + objects(build / "headrace_portable.dir")
    assert common
    found = [line for line in output("objdump", "-d", "--no-show-raw-insn", *common).splitlines() if VECTOR.search(line)]
    assert not found[:5]


@pytest.mark.parametrize("build", BUILDS, ids=lambda path: path.parent.name)
def test_the_search_sees_wide_vectors(build: Path) -> None:
    if not (wide := objects(build / "headrace_avx512.dir")):
        pytest.skip("a build for another CPU")
    assert any(VECTOR.search(line) for line in output("objdump", "-d", "--no-show-raw-insn", *wide).splitlines())
