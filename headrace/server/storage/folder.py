"""The folder in which a server keeps what outlives it: whose it is, and where in it things lie."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from headrace.errors import HeadraceError

ROOMS = "files", "incoming", "file_records", "batches", "batch_journals", "jobs", "job_data", "responses"
"""The folders inside."""


def default_folder() -> Path:
    """``headrace/state`` in the user's folder for data. Raises ``invalid_setting`` for a user without one."""
    given = os.environ.get("XDG_DATA_HOME", "")
    try:
        return (Path(given) if os.path.isabs(given) else Path.home() / ".local" / "share") / "headrace" / "state"
    except RuntimeError as error:
        raise HeadraceError("invalid_setting", "there is no folder for data; give a state_dir", param="state_dir") from error


class StateFolder:
    """A folder that belongs to one server at a time, and to its user alone. Raises ``invalid_setting`` when it can't be had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            for name in ROOMS:
                (path / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HeadraceError("invalid_setting", f"state_dir can't be used: {error}", param="state_dir") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            problem = f"state_dir {path} is in use by another server; give this one a folder of its own"
            raise HeadraceError("invalid_setting", problem, param="state_dir") from error

    def room(self, name: str) -> Path:
        """A folder inside; one of :data:`ROOMS`."""
        assert name in ROOMS
        return self.path / name

    def close(self) -> None:
        """Let another server have it."""
        os.close(self._lock)
