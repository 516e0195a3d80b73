"""How to run the server. Light to import: the HTTP stack is loaded while the engine process already loads the model."""

from __future__ import annotations

from headrace.server.process import Settings, serve


def run(settings: Settings) -> int:
    """Serve until told to stop; the exit code. ``settings.of(kind)`` gives the object of each settings class.

    0 after a drain (SIGTERM or SIGINT), 1 when the engine could not start or died. Raises ``invalid_setting`` for a key
    file or address that can't be used.
    """
    return serve(settings)
