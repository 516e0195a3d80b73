"""The shape that reaches the tile unit is whole, whatever the compiler: gcc 12 is known to drop stores to it."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "csrc"
FLAGS = (
    "-std=c++20 -O3 -ffp-contract=off -fno-math-errno -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c"
    " -mprefer-vector-width=512 -mamx-tile -mamx-int8 -DHEADRACE_ISA=amx"
)
CLANGS = ("clang++", *(f"clang++-{version}" for version in range(25, 13, -1)))

pytestmark = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="tile registers are x86-64's")


def find(compiler: str) -> str:
    """Path of a compiler; the test is skipped where it isn't installed."""
    names = CLANGS if compiler == "clang" else ("g++",)
    path = next((found for name in names if (found := shutil.which(name))), None)
    return path or pytest.skip(f"{compiler} is not installed")


def probe(compiler: str, folder: Path, *words: str) -> dict[tuple[int, int], bytes]:
    """The 64 bytes that ``ldtilecfg`` read, by (group, rows)."""
    program = folder / "probe"
    source = HERE / "tile_config_probe.cpp"
    subprocess.run([compiler, *FLAGS.split(), f"-I{SOURCES}", str(source), "-o", str(program)], check=True, timeout=120)
    lines = subprocess.run([program, *words], check=True, timeout=30, capture_output=True, text=True).stdout.splitlines()
    return {(int(group), int(rows)): bytes.fromhex(seen) for group, rows, seen in map(str.split, lines)}


def wanted(group: int, rows: int) -> bytes:
    """Four tiles of sums, two of planes, two of codes."""
    counts = [rows] * 6 + [group // 4] * 2 + [0] * 8
    sizes = [64] * 4 + [group] * 2 + [64] * 2 + [0] * 8
    return struct.pack("<BB14x16H16B", 1, 0, *sizes, *counts)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_byte_of_the_shape_survives(compiler: str, tmp_path: Path) -> None:
    seen = probe(find(compiler), tmp_path)
    assert seen == {(group, rows): wanted(group, rows) for rows in range(1, 17) for group in (16, 32)}


def test_the_probe_sees_a_dropped_store(tmp_path: Path) -> None:
    """The same probe on the intrinsic with a shape filled at run time, built by the compiler that is known to lose it."""
    compiler = find("gcc")
    version = subprocess.run([compiler, "-dumpversion"], check=True, capture_output=True, text=True).stdout
    if version.split(".")[0].strip() != "12":
        pytest.skip("only gcc 12 is known to drop these stores")
    seen = probe(compiler, tmp_path, "control")
    assert any(shape != wanted(*key) for key, shape in seen.items())
