"""Older CPUs: what they lack is told in one line, and the kernels that they can run are chosen."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from headrace.kernels import _native
from headrace.kernels.formats import instruction_sets

pytestmark = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="features of x86-64")


def run(without: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python process on a CPU that counts as having none of these features."""
    environment = os.environ | {"HEADRACE_CPU_WITHOUT": without}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("without", "chosen"), [("amx-tile", "avx512-bf16"), ("avx512bf16", "avx512"), ("avx512vnni", "avx2"), ("f16c", "portable")]
)
def test_the_best_that_is_left_is_chosen(without: str, chosen: str) -> None:
    here = [isa.name for isa in instruction_sets() if isa.runnable and isa.automatic]
    if chosen not in here:
        pytest.skip(f"this CPU itself can't run {chosen}")
    done = run(without, "-c", "from headrace.kernels import _native; print(_native.isa())")
    assert done.stdout.strip() == chosen, done.stderr


def test_forcing_what_the_cpu_lacks_says_what_it_has() -> None:
    code = "from headrace.kernels import _native\ntry: _native.set_isa('avx512')\nexcept ValueError as error: print(error)"
    done = run("avx512f,avx512vnni,fma", "-c", code)
    message = done.stdout.strip()
    assert message.startswith("no kernels for instruction set 'avx512' on this machine: this CPU has no "), done.stderr
    lacking, had = message.split(" (it has ")
    assert {"fma", "avx512f", "avx512vnni"} <= set(lacking.rpartition("has no ")[2].split(", "))
    left = [name for name in _native.cpu_features() if name not in ("fma", "avx512f", "avx512vnni")]
    assert had.rstrip(")") == (", ".join(left) or "none of the known features")


@pytest.mark.parametrize("words", [("-m", "headrace", "serve"), ("-m", "headrace", "doctor"), ("-c", "from headrace import LLM")])
def test_a_cpu_that_can_run_nothing_is_told_so_in_one_line(words: tuple[str, ...]) -> None:
    done = run("sse4.2,popcnt", *words)
    assert done.returncode == (2 if words[0] == "-m" else 1)
    line = done.stderr.strip().splitlines()[-1]
    assert line.endswith("this CPU has no sse4.2, popcnt; headrace and numpy need an x86-64 CPU of 2009 or later (x86-64-v2)")
    assert words[0] != "-m" or len(done.stderr.strip().splitlines()) == 1


def test_the_refusal_comes_before_numpy() -> None:
    code = "import sys\ntry:\n from headrace import LLM\nexcept Exception: print('numpy' in sys.modules)"
    assert run("ssse3", "-c", code).stdout.strip() == "False"


def test_an_unknown_feature_is_refused() -> None:
    done = run("avx3", "-m", "headrace", "list")
    assert done.returncode == 2
    assert done.stderr.strip() == "headrace: HEADRACE_CPU_WITHOUT: no feature 'avx3' chooses between kernels"
