"""Constraints on output text: schema, regex, choice or grammar to a mask over the vocabulary, by llguidance.

The engine process compiles on a thread (llguidance gives the interpreter lock back while it builds a grammar and while
it computes a mask) and asks for one mask a token. Every limit is a count and not a clock, so that a grammar that is
accepted once is accepted always: the size of the source, its nesting, and llguidance's own fuel for lexer and parser.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llguidance
import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError
from headrace.text.grammar_spec import GrammarSpec
from headrace.text.tokenizer import Tokenizer

# Unbounded white space lets a small model write blanks for ever; this is room for 24 columns of indentation.
_JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \n\r\t]{0,24}", "lenient": False}
_PROBE_STEPS = 4
MAX_MULTIPLE = 1000


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """``source_bytes`` and ``depth`` bound the request, ``choices`` the alternatives of one choice or enum.

    The rest is llguidance's: ``lexer_fuel`` for building the lexer (50,000 a ms), ``step_fuel``, ``step_items`` and
    ``row_items`` for one mask, ``lexer_states`` (1–2 kB each), ``grammar_size`` in symbols. ``cached`` compiled grammars are kept.
    A parser item costs up to 7 µs and a mask holds the whole step up, so that ``step_items`` are few: no mask takes 30 ms.
    """

    source_bytes: int = 64 * 1024
    depth: int = 48
    choices: int = 4096
    lexer_fuel: int = 400_000
    step_fuel: int = 200_000
    step_items: int = 4_000
    row_items: int = 4_000
    lexer_states: int = 20_000
    grammar_size: int = 100_000
    cached: int = 64


class Matcher:
    """Where one item stands in its grammar. Used by one thread at a time."""

    __slots__ = ("_eos", "_inner")

    def __init__(self, inner: llguidance.LLMatcher, eos: frozenset[int]) -> None:
        self._inner = inner
        self._eos = eos

    def mask(self, out: NDArray[np.uint32]) -> None:
        """Write one bit a token (token t is bit t % 32 of word t // 32); end-of-sequence is allowed where the text may end.

        ``out`` is contiguous, ``CompiledGrammar.words`` long. Errors: ``HeadraceError("invalid_grammar")`` when this
        step needs more than the limits allow; the item can't go on then.
        """
        self._inner.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
        if self._inner.is_error():
            raise HeadraceError("invalid_grammar", "the grammar needs more work for one token than the limits allow")

    def advance(self, token: int) -> bool:
        """Take a sampled token. False: the grammar forbids it, and the state is unchanged."""
        if self.is_complete():
            return token in self._eos
        if self._inner.is_error() or self._inner.validate_tokens([token]) != 1:
            return False
        return bool(self._inner.consume_token(token))

    def is_complete(self) -> bool:
        """True when the text can only end here: nothing but end-of-sequence may follow."""
        return bool(self._inner.is_stopped()) and not self._inner.is_error()

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, one after the other, may come next: none that would end the text, and none behind the end."""
        if self.is_complete() or self._inner.is_error():
            return 0
        ends = next((place for place, token in enumerate(tokens) if token in self._eos), len(tokens))
        return int(self._inner.validate_tokens(list(tokens[:ends])))

    def forced(self) -> list[int]:
        """Tokens that spell what must come next, as the tokenizer would cut it; a mask may allow it to be cut in other ways."""
        return [] if self.is_complete() or self._inner.is_error() else list(self._inner.compute_ff_tokens())

    @property
    def allows_eos(self) -> bool:
        """True when the text so far satisfies the grammar, so that it may end here."""
        return bool(self._inner.is_accepting())

    def fork(self) -> Matcher:
        """An independent matcher in the same state (for n > 1, or to try a draft)."""
        return Matcher(self._inner.deep_copy(), self._eos)


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar ready to start any number of matchers. ``words`` is the length of a mask."""

    spec: GrammarSpec
    words: int
    _start: llguidance.LLMatcher
    _eos: frozenset[int]

    def matcher(self) -> Matcher:
        """A matcher at the start (about 10 µs)."""
        return Matcher(self._start.deep_copy(), self._eos)


class _Vocabulary:
    """What llguidance asks of a tokenizer: token bytes, special ids and a way to encode bytes."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, end: int) -> None:
        self.eos_token_id = end
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(index) for index in range(min(vocab, tokenizer.vocab_size))]
        self.tokens += [b""] * (vocab - tokenizer.vocab_size)
        self.special_token_ids = sorted(index for index in tokenizer.special_ids.union(tokenizer.eos_ids) if index < vocab)
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        ids = self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))
        return [index for index in ids if index < len(self.tokens)]


class GrammarCompiler:
    """Compiles constraints for one model; safe to use from several threads.

    ``vocab``: the model's number of logits where it differs from the tokenizer's. The first use prepares the
    vocabulary (0.1 s for 49k tokens, 1–2 s for 262k); :meth:`prepare` does so ahead.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab: int | None = None, limits: GrammarLimits | None = None) -> None:
        self._tokenizer = tokenizer
        self._vocab = tokenizer.vocab_size if vocab is None else vocab
        self._ends = [index for index in tokenizer.eos_ids if index < self._vocab]
        if not self._ends:
            raise HeadraceError("model_file", "grammars need a model with an end-of-sequence token")
        self.limits = limits or GrammarLimits()
        self._prepared: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()
        self._cache: OrderedDict[GrammarSpec, CompiledGrammar] = OrderedDict()

    @property
    def words(self) -> int:
        """Length of a mask in 32-bit words."""
        return (self._vocab + 31) // 32

    def prepare(self) -> llguidance.LLTokenizer:
        """Build llguidance's view of the vocabulary once."""
        with self._lock:
            if self._prepared is None:
                wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab, self._ends[0]))
                self._prepared = llguidance.LLTokenizer(wrapper, eos_token=self._ends)
            return self._prepared

    def compile(self, spec: GrammarSpec, *, param: str = "response_format") -> CompiledGrammar:
        """Compile, or find in the cache. Blocks: call it off the loop.

        Errors: ``HeadraceError("invalid_grammar", …, param)`` for what can't be understood or is beyond the limits.
        """
        with self._lock:
            known = self._cache.get(spec)
            if known is not None:
                self._cache.move_to_end(spec)
                return known
        source = self._grammar(spec, param)
        matcher = llguidance.LLMatcher(self.prepare(), source, log_level=0, limits=self._parser_limits())
        if matcher.is_error():
            raise HeadraceError("invalid_grammar", _readable(matcher.get_error()), param=param)
        self._probe(matcher.deep_copy(), param)
        compiled = CompiledGrammar(spec, self.words, matcher, frozenset(self._ends))
        with self._lock:
            self._cache[spec] = compiled
            while len(self._cache) > self.limits.cached:
                self._cache.popitem(last=False)
        return compiled

    def _probe(self, matcher: llguidance.LLMatcher, param: str) -> None:
        """Make the first masks, where an expensive lexer or a wide grammar shows: better a refusal now than in a step."""
        out = np.zeros(self.words, dtype=np.uint32)
        for step in range(_PROBE_STEPS):
            matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
            words = np.flatnonzero(out)
            if matcher.is_error() or (step == 0 and not words.size):
                raise HeadraceError("invalid_grammar", _readable(matcher.get_error()), param=param)
            if matcher.is_accepting() or not words.size:
                return
            value = int(out[words[0]])
            matcher.consume_token(int(words[0]) * 32 + (value & -value).bit_length() - 1)

    def _parser_limits(self) -> llguidance.LLParserLimits:
        limits = self.limits
        return llguidance.LLParserLimits(
            initial_lexer_fuel=limits.lexer_fuel,
            step_lexer_fuel=limits.step_fuel,
            step_max_items=limits.step_items,
            max_items_in_row=limits.row_items,
            max_lexer_states=limits.lexer_states,
            max_grammar_size=limits.grammar_size,
            verbose_errors=False,
        )

    def _grammar(self, spec: GrammarSpec, param: str) -> str:
        """The llguidance form of a spec, after the checks that need no compiler."""
        check_source(spec, self.limits, param)
        if spec.kind == "json_object":
            return _from_schema('{"type":"object"}', param)
        if spec.kind == "json_schema":
            return _from_schema(spec.source, param)
        if spec.kind == "regex":
            return str(llguidance.LLMatcher.grammar_from_regex(spec.source))
        if spec.kind == "choice":
            return str(llguidance.LLMatcher.grammar_from_lark(_choice_grammar(spec.source)))
        return str(llguidance.LLMatcher.grammar_from_lark(spec.source))


def check_source(spec: GrammarSpec, limits: GrammarLimits, param: str = "response_format") -> None:
    """The checks that cost nothing, for the API process to make before anything is sent on.

    Errors: ``HeadraceError("invalid_grammar", …, param)``.
    """
    try:
        size = len(spec.source.encode("utf-8"))
    except UnicodeEncodeError:
        raise HeadraceError("invalid_grammar", "the source has a lone surrogate: it is not valid Unicode", param=param) from None
    if size > limits.source_bytes:
        raise HeadraceError("invalid_grammar", f"the source is larger than {limits.source_bytes} bytes", param=param)
    if spec.kind == "json_object":
        if spec.source:
            raise HeadraceError("invalid_grammar", "json_object takes no schema; use json_schema", param=param)
    elif spec.kind in ("json_schema", "choice"):
        value = _decode(spec.source, param)
        _check_tree(value, limits, param)
        if spec.kind == "choice":
            _check_choice(value, param)
        elif not isinstance(value, dict | bool):
            raise HeadraceError("invalid_grammar", "a schema must be an object or a boolean", param=param)
    else:
        if _nesting(spec.source) > limits.depth:
            raise HeadraceError("invalid_grammar", f"brackets nest deeper than {limits.depth}", param=param)
        if spec.kind == "lark":
            _check_embedded(spec.source, param)


def _decode(source: str, param: str) -> Any:
    try:
        return msgspec.json.decode(source)
    except msgspec.DecodeError as error:
        raise HeadraceError("invalid_grammar", f"the source is not valid JSON: {error}", param=param) from None
    except RecursionError:
        raise HeadraceError("invalid_grammar", "the source nests too deeply", param=param) from None


def _check_tree(value: Any, limits: GrammarLimits, param: str) -> None:
    """Walk without recursion: depth, and the length of every list."""
    level = [value]
    for _ in range(limits.depth):
        inner: list[Any] = []
        for entry in level:
            if isinstance(entry, list):
                if len(entry) > limits.choices:
                    raise HeadraceError("invalid_grammar", f"a list has more than {limits.choices} entries", param=param)
                inner += entry
            elif isinstance(entry, dict):
                inner += entry.values()
                _check_multiple(entry.get("multipleOf"), param)
        if not inner:
            return
        level = inner
    raise HeadraceError("invalid_grammar", f"the source nests deeper than {limits.depth}", param=param)


def _check_multiple(value: Any, param: str) -> None:
    """Bound ``multipleOf``: its automaton has a state for each remainder and its making takes no fuel (1,000,003: 12 s)."""
    if isinstance(value, int | float) and not (value >= 1 and value == int(value) and value <= MAX_MULTIPLE):
        digits = f"{value:.4f}".rstrip("0")
        if not (0.0001 <= value < 1 and math.isclose(float(digits), value) and int(digits[2:]) <= MAX_MULTIPLE):
            message = f"multipleOf must be an integer from 1 to {MAX_MULTIPLE}, or below 1 with at most four decimals"
            raise HeadraceError("invalid_grammar", message, param=param)


def _check_embedded(source: str, param: str) -> None:
    """The same bound for schemas inside a Lark grammar, whose keys can't hide behind escapes."""
    if "%json" not in source and "%llguidance" not in source:
        return
    if re.search(r"\\u(?!00[01])", source):
        raise HeadraceError("invalid_grammar", "a schema inside a grammar must not use \\u escapes", param=param)
    for match in re.finditer(r'"multipleOf"\s*:\s*([^,}\s]*)', source):
        try:
            _check_multiple(float(match[1]), param)
        except ValueError:
            raise HeadraceError("invalid_grammar", "multipleOf must be a number", param=param) from None


def _check_choice(value: Any, param: str) -> None:
    if not isinstance(value, list) or not value or not all(isinstance(entry, str) and entry for entry in value):
        raise HeadraceError("invalid_grammar", "a choice must be a list of one or more texts, none of them empty", param=param)


def _nesting(source: str) -> int:
    """The deepest nesting of round, square and curly brackets, whatever they mean in this grammar."""
    depth = deepest = 0
    for char in source:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}" and depth:
            depth -= 1
    return deepest


def _from_schema(schema: str, param: str) -> str:
    try:
        return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS))
    except ValueError as error:
        raise HeadraceError("invalid_grammar", _readable(str(error)), param=param) from None


def _choice_grammar(source: str) -> str:
    choices = dict.fromkeys(json.loads(source))
    # Lark's strings are JSON's, but without DEL as it is.
    texts = (json.dumps(choice, ensure_ascii=False).replace("\x7f", "\\u007f") for choice in choices)
    return "start: CHOICE\nCHOICE: " + " | ".join(texts)


def _readable(error: str) -> str:
    """The compiler's message in one line of bounded length."""
    line = " ".join(error.replace("<non-verbose/>", "").split())
    if line.startswith("NoExtension"):
        return "no text at all satisfies the grammar"
    return line[:400] if line else "the grammar can't be compiled within the limits"
