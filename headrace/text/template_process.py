"""Runs the template worker: starts it, talks to it under a time limit, ends and restarts it when it is late."""

from __future__ import annotations

import os
import selectors
import struct
import subprocess
import sys
import threading
import time
import weakref

import msgspec

from headrace.errors import HeadraceError
from headrace.text.template_worker import MAX_FRAME_BYTES, Call, Reply

START_SECONDS = 20.0
LOAD_SECONDS = 2.0


class TemplateProcess:
    """One template in one worker process. Calls may come from any thread; they wait for each other.

    The process starts at once and in the background; a call that finds it dead starts a new one.
    """

    def __init__(self, source: str, *, seconds: float) -> None:
        self._source = source
        self._seconds = seconds
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(Reply)
        self._variables: frozenset[str] | None = None
        self._loaded = False
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "headrace.text.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "PYTHONUTF8": "1"},
            bufsize=0,
        )
        self._loaded = False
        self._end = weakref.finalize(self, _end, self._process)

    def close(self) -> None:
        """End the process; later calls are refused."""
        with self._lock:
            self._closed = True
            self._end()

    def variables(self) -> frozenset[str]:
        """The names that the template refers to and does not define. Errors: ``invalid_template`` when it can't load."""
        with self._lock:
            self._load()
            return self._variables or frozenset()

    def render(self, call: Call) -> str:
        """The rendered text. Errors: ``HeadraceError("invalid_template")`` for any failure, also for being late."""
        with self._lock:
            self._load()
            return self._ask(call, self._seconds).text

    def _load(self) -> None:
        if self._closed:
            raise HeadraceError("invalid_template", "the chat template is closed")
        if self._process.poll() is not None:
            self._end()
            self._start()
        if not self._loaded:
            # The first answer also waits for the interpreter to start; an empty template takes that out of the time limit.
            self._ask(Call(source=""), START_SECONDS)
            self._variables = frozenset(self._ask(Call(source=self._source), LOAD_SECONDS).variables)
            self._loaded = True

    def _ask(self, call: Call, seconds: float) -> Reply:
        try:
            data = self._encoder.encode(call)
        except (UnicodeEncodeError, RecursionError) as error:
            raise HeadraceError(
                "invalid_value", "the messages are not valid Unicode or nest too deeply", param="messages"
            ) from error
        if len(data) > MAX_FRAME_BYTES:
            raise HeadraceError("invalid_value", f"the messages are larger than {MAX_FRAME_BYTES} bytes", param="messages")
        try:
            reply = self._exchange(struct.pack("<I", len(data)) + data, time.monotonic() + seconds)
        except TimeoutError:
            self._end()
            raise HeadraceError("invalid_template", f"the chat template took longer than {seconds:g} seconds") from None
        except OSError as error:
            self._end()
            raise HeadraceError("invalid_template", "the chat template ended its process") from error
        if reply.error:
            raise HeadraceError("invalid_template", reply.error)
        return reply

    def _exchange(self, data: bytes, until: float) -> Reply:
        """Write a frame and read one, never blocking beyond ``until``: a worker that is late may not read either."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        sink, source = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(sink, False)
        received = bytearray()
        view = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(sink, selectors.EVENT_WRITE)
            selector.register(source, selectors.EVENT_READ)
            while True:
                ready = selector.select(until - time.monotonic()) if until > time.monotonic() else []
                if not ready:
                    raise TimeoutError
                for key, _ in ready:
                    if key.fd == sink:
                        view = view[os.write(sink, view[:65536]) :]
                        if not view:
                            selector.unregister(sink)
                        continue
                    chunk = os.read(source, 1 << 20)
                    if not chunk:
                        raise BrokenPipeError
                    received += chunk
                    if len(received) >= 4 and len(received) - 4 >= int.from_bytes(received[:4], "little"):
                        return self._decoder.decode(received[4:])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
