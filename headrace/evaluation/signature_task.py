"""A small task of real text that every machine has: the names in the signatures of Python's own library, as a line of words."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_MODULES = (
    "argparse", "ast", "bisect", "calendar", "codecs", "configparser", "copy", "csv", "difflib", "dis", "doctest",
    "filecmp", "fractions", "ftplib", "getpass", "gettext", "glob", "gzip", "heapq", "imaplib", "inspect", "locale",
    "mailbox", "mimetypes", "netrc", "optparse", "pdb", "pickle", "plistlib", "poplib", "pprint", "profile", "pydoc",
    "queue", "quopri", "random", "reprlib", "sched", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket",
    "statistics", "string", "subprocess", "tabnanny", "tarfile", "tempfile", "textwrap", "threading", "timeit",
    "tokenize", "trace", "turtle", "typing", "uuid", "warnings", "wave", "webbrowser", "zipapp",
)  # fmt: skip
_SYSTEM = "Name the function and its arguments."
_MOST_CHARACTERS = 72


@dataclass(frozen=True, slots=True)
class Exercise:
    """A line of source as it stands there, and the words that are asked for."""

    line: str
    answer: str

    @property
    def question(self) -> list[dict[str, str]]:
        """The messages of a request."""
        return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": self.line}]

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages with the answer, as a training file has them."""
        return [*self.question, {"role": "assistant", "content": self.answer}]


def exercises(count: int, held_out: int, seed: int) -> tuple[list[Exercise], list[Exercise]]:
    """(to learn from, held out): different functions of different modules, drawn by the seed."""
    draw = random.Random(seed)
    modules = list(_MODULES)
    draw.shuffle(modules)
    cut = max(1, len(modules) * held_out // (count + held_out))
    return _drawn(modules[cut:], count, draw), _drawn(modules[:cut], held_out, draw)


def _drawn(modules: Sequence[str], count: int, draw: random.Random) -> list[Exercise]:
    found = {one.line: one for module in modules for one in _of(module)}
    listed = [found[line] for line in sorted(found)]
    draw.shuffle(listed)
    return listed[:count]


def _of(module: str) -> Iterator[Exercise]:
    path = Path(sysconfig.get_paths()["stdlib"]) / f"{module}.py"
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        line = lines[node.lineno - 1].strip()
        names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if re.fullmatch(r"def \w+\(.*\):", line) and 1 <= len(names) <= 5 and len(line) <= _MOST_CHARACTERS:
            yield Exercise(line, f"{node.name}: {', '.join(names)}")
