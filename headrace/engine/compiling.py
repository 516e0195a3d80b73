"""Grammars on a thread beside the loop: whoever wants one waits for a future, and nobody else does."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from headrace.engine.parts import GrammarSource
from headrace.engine.request import Grammar
from headrace.engine.sampling_params import GrammarSpec
from headrace.errors import HeadraceError


class Compiling:
    """One thread that compiles. ``source`` ``None``: an engine without a tokenizer, which refuses all grammars."""

    def __init__(self, source: GrammarSource | None) -> None:
        self._source = source
        self._thread = ThreadPoolExecutor(1, "grammar") if source is not None else None

    def start(self, spec: GrammarSpec) -> Future[Grammar]:
        """The grammar to be, which may fail with ``invalid_grammar``. Without a tokenizer raises ``unsupported_parameter``."""
        if self._source is None or self._thread is None:
            raise HeadraceError("unsupported_parameter", "this engine has no tokenizer to constrain output with", param="grammar")
        return self._thread.submit(self._source.compile, spec)

    def close(self, *, wait: bool = False) -> None:
        """Drop what has not begun; or ``wait`` until all that is still wanted is done."""
        if self._thread is not None:
            self._thread.shutdown(wait=wait, cancel_futures=not wait)
