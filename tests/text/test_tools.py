"""Tools: what the model is shown, the grammar of its answer, and streams that equal the whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import SMOL, tokenizer

from headrace.errors import HeadraceError
from headrace.text.chat_template import ChatTemplate, Conversation
from headrace.text.grammar import GrammarCompiler
from headrace.text.grammar_spec import GrammarSpec
from headrace.text.json_scan import ObjectScanner
from headrace.text.tool_dialects import DIALECTS, HERMES, LLAMA3, MISTRAL, Dialect, call_grammar, dialect_of
from headrace.text.tool_stream import ToolCallStream, parse_tool_calls
from headrace.text.tools import ToolRequest, plan_tools

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/place"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"place": {"type": "string", "maxLength": 8}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
USER = {"role": "user", "content": "Weather in Paris?"}


def fixed_ids() -> Any:
    numbers = count()
    return lambda: f"call_{next(numbers)}"


def spell(dialect: Dialect, content: str, calls: Sequence[tuple[str, str]]) -> str:
    """An output as the dialect writes it."""
    objects = [f'{{"name": {json.dumps(name)}, "{dialect.arguments_key}": {arguments}}}' for name, arguments in calls]
    joined = (dialect.close + dialect.between + dialect.open).join(objects)
    return content + dialect.trigger + dialect.begin + dialect.open + joined + dialect.close + dialect.end if calls else content


def collect(dialect: Dialect, pieces: Sequence[str]) -> tuple[str, list[list[str]]]:
    """Feed pieces and join the deltas; checks that id and name come once, in order."""
    stream = ToolCallStream(dialect, make_id=fixed_ids())
    content, calls = "", list[list[str]]()
    for delta in [*(stream.push(piece) for piece in pieces), stream.finish()]:
        content += delta.content
        for piece in delta.calls:
            if piece.id is not None:
                assert piece.index == len(calls)
                calls.append([piece.id, piece.name or "", ""])
            assert piece.index == len(calls) - 1
            calls[-1][2] += piece.arguments
    assert stream.calls == len(calls)
    return content, calls


def cut(text: str, at: Sequence[int]) -> list[str]:
    borders = sorted({min(position, len(text)) for position in at} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(borders)]


contents = st.text(st.sampled_from('ab <>|[]{}"\\/\n_tool_callTOOL'), max_size=20)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(st.sampled_from('ab{}[]"\\</tool_call>\n,é'), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
arguments_text = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), values, max_size=3).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)
call_lists = st.lists(st.tuples(st.sampled_from(["get_weather", "clock"]), arguments_text), min_size=1, max_size=3)
cuts = st.lists(st.integers(0, 300), max_size=30)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@settings(max_examples=150, deadline=None)
@given(content=contents, calls=call_lists, at=cuts)
def test_streamed_calls_equal_what_was_spelt(dialect: Dialect, content: str, calls: list[tuple[str, str]], at: list[int]) -> None:
    while dialect.trigger and dialect.trigger in content:
        content = content.replace(dialect.trigger, "")
    content = content if dialect.trigger else ""
    got_content, got_calls = collect(dialect, cut(spell(dialect, content, calls), at))
    assert got_content == content
    assert [(name, arguments) for _, name, arguments in got_calls] == calls
    assert [json.loads(arguments) for *_, arguments in got_calls] == [json.loads(arguments) for _, arguments in calls]


NOISE = (
    *(
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "text",
        '{"name": "f", ',
        '"arguments": ',
        '"parameters": ',
        '{"a": "}"}',
        "}",
        "{",
        '"',
    ),
    *("[TOOL_CALLS]", "[", "]", ",", ";", "<tool", '{"name": "f", "arguments": {}}', "<|python_tag|>"),
)
noise = st.lists(st.sampled_from(NOISE), max_size=14).map("".join)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@settings(max_examples=300, deadline=None)
@given(text=noise, at=cuts)
def test_any_output_gives_the_same_however_it_is_cut(dialect: Dialect, text: str, at: list[int]) -> None:
    whole = parse_tool_calls(dialect, text, make_id=fixed_ids())
    content, calls = collect(dialect, cut(text, at))
    assert (content or None, [tuple(call) for call in calls]) == (whole.content, [tuple(call) for call in whole.calls])


def test_arguments_stream_as_they_come() -> None:
    stream = ToolCallStream(HERMES, make_id=fixed_ids())
    assert stream.push('Ok <tool_call>\n{"name": "f"').calls == ()
    first = stream.push(', "arguments": {"a"').calls
    assert [(piece.index, piece.id, piece.name, piece.arguments) for piece in first] == [
        (0, "call_0", "f", ""),
        (0, None, None, '{"a"'),
    ]
    assert [piece.arguments for piece in stream.push(": 1").calls] == [": 1"]
    assert [piece.arguments for piece in stream.push("}}\n</tool_call>").calls] == ["}"]
    assert stream.finish() == ("", ())


def test_long_arguments_cost_no_more_a_character_than_short_ones() -> None:
    long = '{"name": "f", "arguments": {"a": "' + "x" * 400_000 + '"}}'
    scanner = ObjectScanner("name", "arguments")
    start = time.thread_time()
    assert scanner.feed(long) == len(long)
    assert time.thread_time() - start < 0.7
    assert scanner.done
    assert scanner.take() == long[len('{"name": "f", "arguments": ') : -1]


def test_schemas_nested_beyond_the_interpreter_are_refused(smol: ChatTemplate) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(400):
        parameters = {"type": "object", "properties": {"a": parameters}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(HeadraceError, match="nest too deeply") as caught:
        plan_tools(ToolRequest([USER], [tool]), smol)
    assert caught.value.param == "tools"


def test_text_that_only_looks_like_a_call_is_content() -> None:
    for text in ("a < b <tool", "<tool_call>", "<tool_call>\nno", '<tool_call>\n{"x": 1}\n</tool_call>', '<tool_call>{"name": 3}'):
        assert parse_tool_calls(HERMES, text).calls == ()
        assert (parse_tool_calls(HERMES, text).content or "").startswith(text[:11])
    assert parse_tool_calls(LLAMA3, '{"answer": 42}').content == '{"answer": 42}'


def test_a_call_cut_off_keeps_its_beginning() -> None:
    (call,) = parse_tool_calls(HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": [1, ').calls
    assert call.arguments == '{"a": [1, '
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(call.arguments)


@pytest.fixture(scope="module")
def smol() -> Iterator[ChatTemplate]:
    template = ChatTemplate(tokenizer(SMOL).chat_template, tokenizer(SMOL))
    yield template
    template.close()


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tokenizer(SMOL))


def accepts(compiler: GrammarCompiler, spec: GrammarSpec | None, text: str) -> bool:
    assert spec is not None
    matcher = compiler.compile(spec).matcher()
    return all(matcher.advance(token) for token in tokenizer(SMOL).encode(text)) and matcher.allows_eos


PARIS = '{"city": "Paris"}'


@pytest.mark.model
def test_grammar_of_each_choice(smol: ChatTemplate, compiler: GrammarCompiler) -> None:
    one = spell(HERMES, "", [("get_weather", PARIS)])
    two = spell(HERMES, "", [("get_weather", PARIS), ("clock", "{}")])
    said = "Let me look.\n" + one

    def fits(text: str, **more: Any) -> bool:
        return accepts(compiler, plan_tools(ToolRequest([USER], [WEATHER, CLOCK], **more), smol).grammar, text)

    assert [fits(text) for text in (one, two, said, "Plain text < b.", "", "<tool_call>\nx")] == [
        True,
        True,
        True,
        True,
        True,
        False,
    ]
    assert [fits(text, parallel=False) for text in (one, two, said)] == [True, False, True]
    assert [fits(text, choice="required") for text in (one, two, said, "Plain")] == [True, True, False, False]
    named = {"type": "function", "function": {"name": "clock"}}
    assert [fits(text, choice=named) for text in (one, spell(HERMES, "", [("clock", "{}")]))] == [False, True]
    for wrong in ('{"city": 3}', "{}", '{"city": "Paris", "days": 10}', '{"city": "Paris", "x": 1}', '{"city": "much too long"}'):
        assert not fits(spell(HERMES, "", [("get_weather", wrong)]))
    assert plan_tools(ToolRequest([USER], [WEATHER], "none"), smol).grammar is None


@pytest.mark.model
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("forced", [True, False])
def test_random_walks_are_calls_with_valid_arguments(compiler: GrammarCompiler, dialect: Dialect, forced: bool) -> None:
    """Whatever is sampled under the grammar, the parsed calls are valid: the promise ``by construction``."""
    tok, pick = tokenizer(SMOL), np.random.default_rng(5)
    schemas = {
        "get_weather": WEATHER["function"]["parameters"],
        "clock": {"type": "object", "properties": {}, "additionalProperties": False},
    }
    grammar = compiler.compile(GrammarSpec("lark", call_grammar(dialect, schemas, forced=forced, parallel=True)))
    start = [] if forced else tok.encode(dialect.trigger or "{")
    for _ in range(6):
        matcher, ids, out = grammar.matcher(), list(start), np.zeros(grammar.words, dtype=np.uint32)
        assert all(map(matcher.advance, start))
        for _ in range(200):
            matcher.mask(out)
            choices = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))
            if matcher.allows_eos:
                break
            ids.append(int(pick.choice(choices)))
            assert matcher.advance(ids[-1])
        parsed = parse_tool_calls(dialect, tok.decode(ids))
        assert parsed.calls
        for call in parsed.calls:
            value = json.loads(call.arguments)
            assert call.name in schemas
            assert value == {} if call.name == "clock" else 0 < len(value) <= 2 and len(value["city"]) <= 8


@pytest.mark.model
def test_a_template_without_tools_shows_them_as_text(smol: ChatTemplate) -> None:
    history: list[Any] = [
        {"role": "system", "content": "Be brief."},
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": PARIS}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny <|im_end|>"},
    ]
    plan = plan_tools(ToolRequest(history, [WEATHER]), smol)
    assert plan.tools is None
    assert plan.dialect is HERMES
    marked = smol.render(Conversation(plan.messages, plan.tools))
    assert marked.plain.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions")
    assert json.dumps(WEATHER) in marked.plain
    assert spell(HERMES, "", [("get_weather", PARIS)]) in marked.plain
    assert "<tool_response>\nsunny <|im_end|>\n</tool_response>" in marked.plain
    ids = tokenizer(SMOL).encode_template(marked)
    assert sum(map(tokenizer(SMOL).is_special, ids)) == 2 * 4 + 1


@pytest.mark.model
def test_a_template_with_tools_gets_them() -> None:
    source = "{% for t in tools %}{{ t | tojson }}{% endfor %}[TOOL_CALLS]{{ messages[0].content }}"
    template = ChatTemplate(source, tokenizer(SMOL))
    try:
        plan = plan_tools(ToolRequest([USER], [CLOCK]), template)
        assert plan.dialect is MISTRAL
        assert plan.keep_special == ("[TOOL_CALLS]",)
        assert json.dumps(CLOCK) in template.render(Conversation(plan.messages, plan.tools)).plain
    finally:
        template.close()


def test_dialects_are_known_by_their_marks() -> None:
    assert dialect_of(None) is None
    assert dialect_of("nothing") is None
    assert dialect_of("… <tool_call> …") is HERMES
    assert dialect_of("<|python_tag|>") is LLAMA3


@pytest.mark.model
@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([CLOCK, CLOCK], "auto", "tools.1.function.name"),
        ([{"type": "function", "function": {"name": "bad name"}}], "auto", "tools.0.function.name"),
        ([{"type": "function", "function": {"name": "f", "paramters": {}}}], "auto", "tools.0.function.paramters"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
            "auto",
            "tools.0.function.parameters",
        ),
        ([{"type": "retrieval"}], "auto", "tools.0"),
        ([CLOCK] * 129, "auto", "tools"),
        ([CLOCK], "requird", "tool_choice"),
        ([], "required", "tool_choice"),
        ([CLOCK], {"type": "function", "function": {"name": "clok"}}, "tool_choice"),
        ([CLOCK], {"name": "clock"}, "tool_choice"),
    ],
)
def test_bad_tool_fields_are_named(smol: ChatTemplate, tools: list[Any], choice: Any, param: str) -> None:
    with pytest.raises(HeadraceError) as caught:
        plan_tools(ToolRequest([USER], tools, choice), smol)
    assert caught.value.param == param
