"""How much memory the server's processes hold, as the system counts it."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
_NAMES = {
    "headrace.engine.process": "engine",
    "headrace.text.template_worker": "template",
    "headrace.server.language_worker": "tokenizer",
}


def process_memory(root: str = "self") -> dict[str, int]:
    """Bytes of this process (``api``) and of those it started, by what they do; empty where the system does not say.

    A page that n processes map counts for each of them as one n-th (PSS), so that sums are true.
    """
    try:
        found = {"api": _share(root)}
        for child in _children(root):
            name = next((name for module, name in _NAMES.items() if module in _command(child)), "other")
            found[name] = found.get(name, 0) + _share(child)
    except (OSError, ValueError):  # no such file system, or a process that has just ended
        return {}
    return found


def _children(process: str) -> list[str]:
    found: list[str] = []
    for thread in (_PROC / process / "task").iterdir():
        for child in (thread / "children").read_text(encoding="ascii").split():
            found += [child, *_children(child)]
    return found


def _share(process: str) -> int:
    for line in (_PROC / process / "smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no Pss")


def _command(process: str) -> list[str]:
    return (_PROC / process / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
