"""Print the default dependencies for pip: ``whole`` ones, or those that are installed ``alone``.

tokenizers and gguf declare clients of a model hub among their dependencies (some 30 MB), rich a highlighter and a Markdown
parser: all are imported only by functions that this project never calls. So the three are installed alone; a test imports
everything where none of those is present.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ALONE = ("tokenizers", "gguf", "rich")


def requirements(which: str) -> list[str]:
    """Requirement strings of one half, from ``pyproject.toml``."""
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {line: re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0] for line in project["dependencies"]}
    return [line for line, name in names.items() if (name in ALONE) == (which == "alone")]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
