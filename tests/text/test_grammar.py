"""Grammars: masks that agree with the text, and hostile sources that end soon in a clear refusal."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pytest
from text_models import BOTH, SMOL, tokenizer

from headrace.errors import HeadraceError
from headrace.text.grammar import CompiledGrammar, GrammarCompiler, Matcher
from headrace.text.grammar_spec import GrammarKind, GrammarSpec

pytestmark = pytest.mark.model
T = TypeVar("T")


@lru_cache(maxsize=2)
def compiler(name: str) -> GrammarCompiler:
    made = GrammarCompiler(tokenizer(name))
    made.prepare()
    return made


def allowed(matcher: Matcher, grammar: CompiledGrammar) -> np.ndarray[Any, Any]:
    out = np.zeros(grammar.words, dtype=np.uint32)
    matcher.mask(out)
    return np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))


def accepts(name: str, kind: GrammarKind, source: str, text: str) -> bool:
    """True when the grammar allows each token of ``text`` (by its masks too) and the end after it."""
    grammar = compiler(name).compile(GrammarSpec(kind, source))
    matcher = grammar.matcher()
    for token in tokenizer(name).encode(text):
        masked = token in allowed(matcher, grammar)
        assert matcher.advance(token) == masked
        if not masked:
            return False
    return matcher.allows_eos


PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
ODD = ["a\x7fb", "nul \x00", "i\u2028\x85\r\n\t/"]
CASES: list[tuple[GrammarKind, str, list[str], list[str]]] = [
    ("json_object", "", ['{"a": [1, {"b": null}]}', "{}", '{"caf\u00e9": "\U0001f600"}'], ["[1]", "x", '{"a": }', '{"a": 1'],),
    ("json_schema", PERSON, ['{"name": "Ada", "age": 36}', '{"name":"","age":0}'],
     ['{"name": "Ada"}', '{"name": "Ada", "age": 151}', '{"age": "x"}']),
    ("json_schema", '{"enum": ["red", 3]}', ['"red"', "3"], ['"blue"', "4"]),
    ("regex", r"(yes|no), \d{2,3}", ["yes, 12", "no, 123"], ["yes, 1", "maybe", "no, 1234"]),
    ("choice", '["positive", "negative", "posit\\"ive"]', ["positive", "negative", 'posit"ive'], ["pos", "neutral", "positively"]),
    ("choice", json.dumps(ODD), ODD, ["ab", "nul "]),
    ("lark", 'start: "a" b\nb: "x" b "y" | ""', ["a", "axy", "axxyy"], ["axxy", "b"]),
]  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("kind", "source", "good", "bad"), CASES)
def test_good_text_passes_and_bad_text_does_not(name: str, kind: GrammarKind, source: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not accepts(name, kind, source, text)] == []
    assert [text for text in bad if accepts(name, kind, source, text)] == []


@pytest.mark.parametrize("name", BOTH)
def test_token_ids_agree_with_ours(name: str) -> None:
    tok, prepared = tokenizer(name), compiler(name).prepare()
    for text in ("Hello world", 'x {"a": 1}\n\n', "\U0001f600 caf\u00e9", "<|im_end|><eos>"):
        assert prepared.tokenize_str(text) == tok.encode(text)
    for index in random.Random(1).sample(sorted(set(range(tok.vocab_size)) - tok.special_ids), 300):
        assert prepared.decode_bytes([index]) == tok.token_bytes(index)
    assert all(prepared.is_special_token(index) for index in tok.special_ids)


@pytest.mark.parametrize("name", BOTH)
def test_random_walks_end_in_valid_text(name: str) -> None:
    """Whatever allowed token is drawn, the text stays valid and special tokens stay out until the end."""
    tok, pick = tokenizer(name), random.Random(7)
    grammar = compiler(name).compile(GrammarSpec("json_schema", PERSON))
    for _ in range(8):
        matcher, ids = grammar.matcher(), list[int]()
        for _ in range(300):
            choices = [int(index) for index in allowed(matcher, grammar)]
            if any(index in tok.eos_ids for index in choices):
                assert matcher.allows_eos
                break
            assert not any(map(tok.is_special, choices))
            ids.append(pick.choice(choices))
            assert matcher.advance(ids[-1])
        value = json.loads(tok.decode(ids))
        assert set(value) == {"name", "age"}
        assert 0 <= value["age"] <= 150


def test_a_refused_token_changes_nothing_and_forks_are_apart() -> None:
    tok = tokenizer(SMOL)
    grammar = compiler(SMOL).compile(GrammarSpec("choice", '["ab", "ac"]'))
    matcher = grammar.matcher()
    (a,), (b,), (c,), (z,) = (tok.encode(char) for char in "abcz")
    assert not matcher.advance(z)
    assert matcher.advance(a)
    fork = matcher.fork()
    assert matcher.advance(b)
    assert matcher.is_complete()
    assert not fork.is_complete()
    assert fork.advance(c)
    assert matcher.advance(tok.eos_ids[0])
    assert set(allowed(fork, grammar)) == set(tok.eos_ids)


def test_masks_cover_a_padded_vocabulary() -> None:
    padded = GrammarCompiler(tokenizer(SMOL), vocab=49152 + 100)
    grammar = padded.compile(GrammarSpec("regex", "(?s:.*)"))
    assert grammar.words == (49152 + 100 + 31) // 32
    assert allowed(grammar.matcher(), grammar).max() < 49152


def test_masks_of_a_model_with_fewer_logits_than_the_tokenizer_has_tokens() -> None:
    """Tokens that the model can't sample are left out, and masks are as long as its logits."""
    cut = GrammarCompiler(tokenizer(SMOL), vocab=40_000)
    grammar = cut.compile(GrammarSpec("regex", "(?s:.*)"))
    assert grammar.words == 40_000 // 32
    assert allowed(grammar.matcher(), grammar).max() < 40_000
    with pytest.raises(HeadraceError, match="end-of-sequence"):
        GrammarCompiler(tokenizer(SMOL), vocab=2)


def test_compiled_grammars_are_kept() -> None:
    spec = GrammarSpec("regex", "kept[0-9]+")
    assert compiler(SMOL).compile(spec) is compiler(SMOL).compile(spec)


def nested(depth: int) -> str:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return json.dumps(schema)


def doubling() -> str:
    twice = [{"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)]
    definitions: dict[str, Any] = {f"d{i}": {"allOf": [entry, entry]} for i, entry in enumerate(twice)}
    return json.dumps({"$defs": {**definitions, "d30": {"type": "string"}}, "$ref": "#/$defs/d0"})


_HEX = [f"{value:x}" for value in np.random.default_rng(1).integers(2**40, size=3000).tolist()]
REFUSED: list[tuple[GrammarKind, str]] = [
    ("json_object", "{}"),
    ("json_schema", "{"),
    ("json_schema", "[]"),
    ("json_schema", "3"),
    ("json_schema", '{"type": "strin"}'),
    ("json_schema", '{"$ref": "#"}'),
    ("json_schema", '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}'),
    ("json_schema", '{"$defs":{"a":{"allOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/a"}]}},"$ref":"#/$defs/a"}'),
    ("json_schema", '{"$ref": "http://example.com/schema"}'),
    ("json_schema", '{"$ref": "file:///etc/passwd"}'),
    ("json_schema", nested(100)),
    ("json_schema", '{"a":' * 10_000 + "1" + "}" * 10_000),
    ("json_schema", doubling()),
    ("json_schema", '{"type": "integer", "multipleOf": 1000003}'),
    ("json_schema", '{"type": "number", "multipleOf": 1e-9}'),
    ("json_schema", json.dumps({"enum": list(range(5000))})),
    ("json_schema", '{"type": "string", "pattern": "(a"}'),
    ("json_schema", '{"x": "' + "a" * 70_000 + '"}'),
    ("regex", "(a"),
    ("regex", r"(a)\1"),
    ("regex", "(?=a)b"),
    ("regex", r"[^\s\S]"),
    ("regex", "(" * 40 + "a" + "{2})" * 40),
    ("regex", "(" * 60 + "a" + ")" * 60),
    ("regex", "a" * 70_000),
    ("regex", "\ud800"),
    ("lark", 'start: "\ud800"'),
    ("json_schema", '{"const": "\\ud800"}'),
    ("choice", "[]"),
    ("choice", '[""]'),
    ("choice", '["a", 1]'),
    ("choice", '"a"'),
    ("lark", "start: nothing"),
    ("lark", "start: start start"),
    ("lark", "start: " + "(" * 1000 + '"a"' + ")" * 1000),
    ("lark", 'start: %json {"type": "integer", "multipleOf": 1000003}'),
    ("lark", 'start: %json {"type": "integer", "multipl\\u0065Of": 1000003}'),
    ("lark", "start: A\nA: /.*a.{9}/ & /.*b.{11}/ & /.*c.{10}/"),
]
BOUNDED: list[tuple[GrammarKind, str]] = [
    ("regex", "(a+)+b"),
    ("regex", "((a*)*)*b"),
    ("regex", ".*a.{500}"),
    ("regex", "(a{1,1000}){1,1000}"),
    ("regex", "(.*a.{12}b)|(.*c.{14}d)|(.*e.{13}f)"),
    ("regex", "|".join(_HEX)),
    ("regex", "a" * 60_000),
    ("choice", json.dumps(_HEX)),
    ("json_schema", json.dumps({"enum": _HEX})),
    ("json_schema", nested(20)),
    ("json_schema", json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}})),
    ("json_schema", '{"type": "string", "minLength": 100000, "maxLength": 200000}'),
    ("json_schema", '{"type": "array", "minItems": 1000000000, "items": {"type": "integer"}}'),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "source"), REFUSED)
def test_hostile_sources_are_refused_soon(kind: GrammarKind, source: str) -> None:
    start = time.perf_counter()
    with pytest.raises(HeadraceError) as caught:
        compiler(SMOL).compile(GrammarSpec(kind, source), param="response_format")
    assert time.perf_counter() - start < 1.5
    assert caught.value.code == "invalid_grammar"
    assert caught.value.param == "response_format"
    assert 0 < len(caught.value.message) < 500
    assert not re.search(r"0x[0-9a-f]{6}|\.rs|\.py", caught.value.message)


def unless_refused(action: Callable[[], T]) -> T | None:
    """The result, or ``None`` after a clean refusal."""
    try:
        return action()
    except HeadraceError as error:
        if error.code != "invalid_grammar":
            raise
        return None


@pytest.mark.parametrize(("kind", "source"), BOUNDED)
def test_heavy_sources_stay_bounded(kind: GrammarKind, source: str) -> None:
    """Either a refusal or a grammar whose steps are short; a step beyond the limits ends that item only."""
    start = time.perf_counter()
    grammar = unless_refused(lambda: compiler(SMOL).compile(GrammarSpec(kind, source)))
    assert time.perf_counter() - start < 1.5
    if grammar is None:
        return
    matcher, pick = grammar.matcher(), random.Random(3)
    for _ in range(25):
        start = time.perf_counter()
        found = unless_refused(lambda: allowed(matcher, grammar))
        assert time.perf_counter() - start < 0.5
        choices = [int(i) for i in ([] if found is None else found) if not tokenizer(SMOL).is_special(int(i))]
        if not choices:
            return
        assert matcher.advance(pick.choice(choices))


def ambiguous(count: int) -> str:
    """A schema of values that can be read as any of ``count`` kinds of object at every depth."""
    again = {"$ref": "#/$defs/a"}
    kinds = [
        {"type": "object", "properties": {"a": again, f"b{i}": {"type": "string"}}, "additionalProperties": again}
        for i in range(count)
    ]
    return json.dumps({**again, "$defs": {"a": {"anyOf": kinds}}})


AMBIGUOUS: list[tuple[GrammarKind, str]] = [
    ("json_schema", ambiguous(20)),
    ("json_schema", ambiguous(400)),
    ("regex", r".*(a.{0,30}b.{0,30}c|d.{0,30}e|e.{0,20}[a-f].{7}).*"),
    ("regex", r"[\s\S]*[aeiou][\s\S]{12}[aeiou][\s\S]{12}z"),
    ("lark", 'start: s\ns: s s | "a" | "b" s'),
    ("lark", 'start: s\ns: s s s | s s | "a" | "b" | "ab" | "ba" | " "'),
]


@pytest.mark.parametrize(("kind", "source"), AMBIGUOUS)
def test_no_mask_holds_its_step_up(kind: GrammarKind, source: str) -> None:
    """Processor time of this thread, so that a busy machine can't fail it; a grammar that needs more is refused or ends."""
    grammar = unless_refused(lambda: compiler(SMOL).compile(GrammarSpec(kind, source)))
    if grammar is None:
        return
    matcher, pick = grammar.matcher(), random.Random(3)
    for _ in range(120):
        start = time.thread_time()
        found = unless_refused(lambda: allowed(matcher, grammar))
        assert time.thread_time() - start < 0.06
        choices = [int(i) for i in ([] if found is None else found) if not tokenizer(SMOL).is_special(int(i))]
        if not choices:
            return
        assert matcher.advance(pick.choice(choices))


def test_compiling_leaves_the_interpreter_to_others() -> None:
    """llguidance gives the interpreter lock back: another thread runs on while an expensive regex is compiled."""
    ticks, done = list[float](), threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        with pytest.raises(HeadraceError):
            compiler(SMOL).compile(GrammarSpec("regex", "(" * 39 + "a" + "{2})" * 39))
    finally:
        done.set()
        thread.join()
    assert max(later - sooner for sooner, later in pairwise(ticks)) < 0.15
