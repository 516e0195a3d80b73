"""The key that a server and the instances of other machines share."""

from __future__ import annotations

import os
from pathlib import Path

from headrace.engine.sealing import LONGEST_KEY, check_key
from headrace.errors import HeadraceError

KEY_VARIABLE = "HEADRACE_INSTANCES_KEY_FILE"


def read_key(path: Path | None = None) -> bytes:
    """From this file, else the one that the environment names. Raises ``invalid_setting``."""
    named = str(path) if path is not None else os.environ.get(KEY_VARIABLE, "")
    if not named:
        message = f"instances of other machines prove a shared key: name its file in {KEY_VARIABLE}"
        raise HeadraceError("invalid_setting", message, param="instances")
    try:
        with Path(named).expanduser().open("rb") as file:
            return check_key(file.read(LONGEST_KEY + 64))
    except OSError as error:
        message = f"the key file {named[:200]!r} can't be read: {error.strerror or error}"
        raise HeadraceError("invalid_setting", message, param="instances") from error
