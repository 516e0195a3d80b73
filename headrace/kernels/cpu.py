"""Whether this CPU can run headrace at all, asked before numpy is imported: that would end the process without a word."""

from __future__ import annotations

from headrace.errors import HeadraceError


def require_cpu() -> None:
    """Return on a CPU that can run headrace. Imports no numpy.

    Raises ``unsupported_machine`` naming what is missing, ``invalid_setting`` for an unknown name in ``HEADRACE_CPU_WITHOUT``.
    Kernels that are not built are for whoever needs them to report.
    """
    try:
        from headrace.kernels import _native
    except ImportError:
        return
    try:
        lacking = _native.cpu_lacks()
    except ValueError as error:
        raise HeadraceError("invalid_setting", str(error), param="HEADRACE_CPU_WITHOUT") from error
    if lacking:
        message = f"{lacking}; headrace and numpy need an x86-64 CPU of 2009 or later (x86-64-v2)"
        raise HeadraceError("unsupported_machine", message)
