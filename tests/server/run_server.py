"""The real server process: ``run_server.py ENGINE '{"port": 0, ...}' [MODEL]``.

ENGINE is ``real``, or the echo engine's seconds a token. SIGUSR1 sets the process's clock an hour on, SIGUSR2 a day back.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from headrace.engine.client import EngineClient
from headrace.engine.settings import EngineSettings, ModelSettings
from headrace.scheduling.settings import SchedulingSettings
from headrace.server.process import serve
from headrace.server.settings import ServerSettings

ENGINE = Path(__file__).with_name("echo_engine.py")


class EchoClient(EngineClient):
    """Starts the echo engine instead of the real one."""

    command: ClassVar[tuple[str, ...]] = (sys.executable, str(ENGINE), sys.argv[1])


class Given:
    """Settings as this script got them."""

    def __init__(self, options: dict[str, Any], model: str) -> None:
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        pool = int(given.pop("pool_mib", 256))
        self._objects = {
            ServerSettings: ServerSettings(**given),
            ModelSettings: ModelSettings(tuple(model.split(","))),
            EngineSettings: EngineSettings(pool_mib=pool),
            SchedulingSettings: SchedulingSettings(),
        }

    def of(self, kind: type[Any]) -> Any:
        return self._objects[kind]


def jump(number: int, _: object) -> None:
    """Move the wall clock, as a machine does that finds out what time it is."""
    shift, told = (3600.0 if number == signal.SIGUSR1 else -86_400.0), time.time
    time.time = lambda: told() + shift
    print(f"the clock jumps by {shift:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    for one in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, jump)
    kind = EngineClient if sys.argv[1] == "real" else EchoClient
    default = "smollm2" if kind is EngineClient else "echo=smollm2"
    sys.exit(serve(Given(json.loads(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else default), kind))
