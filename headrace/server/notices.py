"""What the server says to whoever started it."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """One line for the operator."""
    print(f"headrace: {message}", file=sys.stderr, flush=True)
