"""Shell completion: the scripts, and what the command answers when a shell asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from headrace.cli.completion import SHELLS, VARIABLE
from headrace.cli.main import VERBS, run

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_each_shell(shell: str, capsys: Capture) -> None:
    assert run(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert f"{VARIABLE}={shell}_complete" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_another_shell_is_refused_by_name(capsys: Capture) -> None:
    assert run(["completion", "csh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def asked(words: str) -> tuple[list[str], list[str]]:
    """Values that bash is offered after ``words``, and the verbs' modules that the answer imported."""
    program = (
        "import sys\nfrom headrace.cli.main import main\ntry:\n    main([])\nfinally:\n"
        "    print(*[n for n in sys.modules if n.startswith('headrace.cli.')], file=sys.stderr)\n"
    )
    count = len(words.split()) - (not words.endswith(" "))
    environment = {**os.environ, VARIABLE: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return [line.split(",", 1)[1] for line in done.stdout.splitlines()], done.stderr.split()


def test_verbs_are_offered_without_importing_one() -> None:
    values, modules = asked("headrace ")
    assert values == list(VERBS)
    assert modules == ["headrace.cli.main"]


def test_flags_and_choices_of_a_verb() -> None:
    flags, _ = asked("headrace serve --api")
    assert flags == ["--api-key-file"]
    assert asked("headrace completion ")[0] == list(SHELLS)
