"""Grammars of one model for the engine: the tokenizer is opened when the first one is compiled off the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable

from headrace.engine.sampling_params import GrammarSpec
from headrace.text.grammar import CompiledGrammar, GrammarCompiler
from headrace.text.tokenizer import Tokenizer


class LazyGrammars:
    """A :class:`~headrace.engine.loop.GrammarSource` that opens its tokenizer when it is first needed.

    The first grammar waits half a second for that, once; a server that never sees one saves 45 MB.
    ``open_tokenizer`` is called once; ``vocab`` is the model's number of logits.
    """

    def __init__(self, open_tokenizer: Callable[[], Tokenizer], vocab: int) -> None:
        self._open_tokenizer = open_tokenizer
        self._vocab = vocab
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Compile a grammar. Blocks; raises ``invalid_grammar``."""
        return self._ready().compile(spec)

    def _ready(self) -> GrammarCompiler:
        with self._lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler(self._open_tokenizer(), vocab=self._vocab)
            return self._compiler
