"""Runs a command and ends it, with whatever it started, when the one who asked for it ends. Standard library only.

``python keeper.py PARENT_PID COMMAND …`` is a process of its own between a benchmark and a server, so that the server goes even
when the benchmark was killed and could not tidy up. It ends with the command's exit code.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 10.0
_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int) -> None:
    """Ask Linux for a signal when the parent ends; elsewhere only an orderly end reaches the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _child() -> None:
    """In the child, before the command: an unblocked mask again, and no life after the keeper's."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    die_with_parent(signal.SIGKILL)


def keep(parent: int, command: list[str]) -> int:
    """Run ``command`` in a session of its own until it ends or this process is told to; the command's exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING | {signal.SIGCHLD})
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        return 1
    # single-threaded up to here, so that a function may run between fork and exec
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=_child)  # noqa: PLW1509
    while child.poll() is None:
        if signal.sigwait(_ENDING | {signal.SIGCHLD}) in _ENDING:
            _end(child)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask the whole group to end, and insist after a while."""
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        ends = time.monotonic() + patience
        while time.monotonic() < ends:
            if child.poll() is not None:
                return
            time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))
