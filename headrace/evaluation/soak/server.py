"""The server under load: a process of its own with a state folder and adapters that go with it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

import numpy as np

from headrace.errors import HeadraceError
from headrace.evaluation.soak.plain_http import Address
from headrace.models.adapter import Adapter, LowRank, module_sides, round_bf16
from headrace.models.adapter_file import write_adapter
from headrace.models.catalog import find_model, open_model

ADAPTERS = ["north", "south"]
LOADED = "guest"  # comes and goes while the others work
_CONTEXT = 2048
_READY_SECONDS = 180.0
_END_SECONDS = 60.0


class SoakServer:
    """Starts `headrace serve` on a free port; a context manager that ends it. ``lines``: what it logged."""

    def __init__(self, model: str, pool_mib: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-soak-"))
        self.lines: list[str] = []
        self.name = "soaked"
        self.context = _write_adapters(self.folder / "adapters", model)
        command = [
            sys.executable, "-m", "headrace", "serve", "--port", "0", "--model", f"{self.name}={model}",
            "--pool-mib", str(pool_mib), "--context-length", str(self.context), "--drain", "30",
            "--adapter-dir", str(self.folder / "adapters"), "--state-dir", str(self.folder / "state"),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> SoakServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def address(self) -> Address:
        """Where it listens. Raises ``internal_error`` with its last words when it never does."""
        until = time.monotonic() + _READY_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            for line in list(self.lines):
                found = re.search(r"listening on http://([\w.]+):(\d+)", line)
                if found:
                    return Address(found[1], int(found[2]))
            time.sleep(0.05)
        raise HeadraceError("internal_error", "the server did not start: " + " | ".join(self.lines[-5:]))

    def stop(self) -> int:
        """End it as an operator does; its exit code. Twice is fine."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.process.returncode

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())


def _write_adapters(folder: Path, model: str) -> int:
    """Random numbers that change the answers; the context to serve, which training leaves free in the pool."""
    config = open_model(find_model(model)).config
    for seed, name in enumerate([*ADAPTERS, LOADED]):
        draws = np.random.default_rng(seed)
        layers = []
        for sides in module_sides(config):
            a, b = (draws.standard_normal(shape, np.float32) for shape in ((4, sides["q"][0]), (sides["q"][1], 4)))
            layers.append({"q": LowRank(round_bf16(a), round_bf16(b), 0.01)})
        # The one that comes and goes lies below the watched folder, where it is not taken up by itself.
        place = folder / "kept" / name if name == LOADED else folder / name
        write_adapter(place, Adapter(tuple(layers), ""))
    return min(_CONTEXT, config.context_length)
