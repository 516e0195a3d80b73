"""The server's end of a tokenizer in another process (:mod:`headrace.server.language_worker`): starts it, asks it, ends it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass

import msgspec
import numpy as np

from headrace.errors import HeadraceError
from headrace.server.language_worker import INNER, MAX_FRAME_BYTES, SPANS, Facts, receive_frame, send_frame
from headrace.text.encoder import Encoding
from headrace.text.marking import SpecialToken
from headrace.text.packed_tokens import PackedTokens
from headrace.text.tokenizer import Tokenizer, TokenizerParts

OPEN_SECONDS = 300.0
"""The longest a tokenizer may take to be made: some need seconds on an idle machine."""
ANSWER_SECONDS = 60.0


class LanguageProcess:
    """One worker. Calls may come from any thread and wait for each other; one that finds it dead starts a new one.

    Errors: what opening the model raises; ``internal_error`` when it dies or is late in the middle of a call.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._closed = False
        self.facts, self.packed = self._start()

    @property
    def pid(self) -> int | None:
        """The worker's process, if there is one."""
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        """End the process; later calls are refused. Waits for no call: one that runs fails."""
        self._closed = True
        self._end()

    def call(self, kind: int, text: str) -> bytes:
        """The answer to one text. Blocks: seconds when the worker must be started again."""
        data = bytes((kind,)) + text.encode()
        if len(data) > MAX_FRAME_BYTES:
            raise HeadraceError("invalid_value", f"a text is longer than {MAX_FRAME_BYTES} bytes")
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._start()
            assert self._connection is not None
            try:
                self._connection.settimeout(ANSWER_SECONDS)
                send_frame(self._connection, data)
                return receive_frame(self._connection)
            except OSError as error:
                self._end()
                raise HeadraceError("internal_error", "the tokenizer's process has ended; it starts again") from error

    def _start(self) -> tuple[Facts, bytes]:
        if self._closed:
            raise HeadraceError("model_failed", "the model has left the memory")
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "headrace.server.language_worker", str(theirs.fileno()), self._model],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
                pass_fds=(theirs.fileno(),),
            )
        self._connection = ours
        ours.settimeout(OPEN_SECONDS)
        try:
            facts = msgspec.json.decode(receive_frame(ours), type=Facts)
            if facts.error is not None:
                raise HeadraceError(*facts.error)
            return facts, receive_frame(ours)
        except (OSError, msgspec.DecodeError) as error:
            self._end()
            raise HeadraceError("internal_error", "the tokenizer's process has ended while it was started") from error
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if process is not None:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()


@dataclass(frozen=True, slots=True)
class DistantEncoder:
    """An :class:`~headrace.text.encoder.Encoder` in another process. ``kind``: which of the model's two."""

    process: LanguageProcess
    kind: int = 0

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that is valid Unicode."""
        ids: list[int] = np.frombuffer(self.process.call(self.kind, text), np.uint32).tolist()
        return ids

    def spans(self, text: str) -> Encoding:
        """The same with the characters that each token came from."""
        ids, starts, ends = np.frombuffer(self.process.call(self.kind | SPANS, text), np.uint32).reshape(3, -1).tolist()
        return Encoding(ids, list(zip(starts, ends, strict=True)))


def distant_tokenizer(process: LanguageProcess) -> Tokenizer:
    """The model's tokenizer; only encoding asks the process."""
    facts = process.facts
    parts = TokenizerParts(
        encoder=DistantEncoder(process),
        tokens=PackedTokens(process.packed),
        specials=tuple(SpecialToken(*special) for special in facts.specials),
        literals=frozenset(facts.literals),
        byte_level=facts.byte_level,
        byte_pieces=frozenset(facts.byte_pieces),
        bos_id=facts.bos_id,
        eos_ids=tuple(facts.eos_ids),
        add_bos=facts.add_bos,
        end_id=facts.end_id,
        add_space_prefix=facts.add_space_prefix,
        chat_template=facts.tokenizer_template,
        inner_encoder=DistantEncoder(process, INNER) if facts.has_inner else None,
        space_mark_is_space=facts.space_mark_is_space,
    )
    return Tokenizer(parts)
