"""The nearest valid name, for refusals that help."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or ``None`` when nothing is near; case and ``-``/``_`` don't count."""
    by_plain = {_plain(candidate): candidate for candidate in known}
    matches = difflib.get_close_matches(_plain(name), by_plain, n=1, cutoff=0.5)
    return by_plain[matches[0]] if matches else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` or an empty string, ready to be put behind a message."""
    match = nearest(name, known)
    return f"; did you mean '{match}'?" if match is not None else ""


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")
