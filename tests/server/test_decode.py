"""The strict decoder: one refusal each, naming the field in path form and the nearest valid name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from fuzzing import TIMES
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.server.protocol.chat import ChatRequest
from headrace.server.protocol.common import IGNORED, UNSUPPORTED
from headrace.server.protocol.completions import CompletionRequest
from headrace.server.protocol.decode import decode_body, known_fields
from headrace.server.protocol.embeddings import EmbeddingRequest
from headrace.server.protocol.tokens import DetokenizeRequest, TokenizeRequest

HELLO = [{"role": "user", "content": "hi"}]
KINDS: tuple[type[msgspec.Struct], ...] = (ChatRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest, DetokenizeRequest)


def refusal(body: Any, kind: type[msgspec.Struct] = ChatRequest) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        decode_body(body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
    return caught.value


def outcome(body: bytes, kind: type[msgspec.Struct]) -> HeadraceError | None:
    try:
        decode_body(body, kind)
    except HeadraceError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("extra", "code", "param", "hint"),
    [
        ({"temperatur": 1}, "unknown_parameter", "temperatur", "temperature"),
        ({"max_tokns": 1}, "unknown_parameter", "max_tokns", "max_tokens"),
        ({"messages": [{"role": "user", "contnt": "x"}]}, "unknown_parameter", "messages[0].contnt", "content"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages[0].content", "str"),
        ({"messages": [{"role": "usr", "content": ""}]}, "invalid_value", "messages[0].role", "usr"),
        ({"messages": [{"content": ""}]}, "missing_parameter", "messages[0].role", "role"),
        ({"messages": []}, "invalid_value", "messages", "length"),
        ({"stop": [1]}, "invalid_value", "stop[0]", "str"),
        ({"stop": ["x"] * 17}, "invalid_value", "stop", "16"),
        ({"stop": ["x" * 257]}, "invalid_value", "stop[0]", "256"),
        ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio", "text"),
        ({"functions": []}, "unsupported_parameter", "functions", "tools"),
        ({"modalities": ["audio"]}, "unsupported_parameter", "modalities[0]", "text"),
        ({"web_search_options": {}}, "unsupported_parameter", "web_search_options", "network"),
        ({"store": True}, "unsupported_parameter", "store", "false"),
        ({"service_tier": "scale"}, "unsupported_parameter", "service_tier", "flex"),
        ({"reasoning_effort": "high"}, "unsupported_parameter", "reasoning_effort", "none"),
        ({"tools": [{"type": "function", "function": {"nam": "x"}}]}, "unknown_parameter", "tools[0].function.nam", "name"),
        (
            {"tools": [{"type": "function", "function": {"name": "bad name"}}]},
            "invalid_value",
            "tools[0].function.name",
            "matching",
        ),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type", "xml"),
        ({"response_format": {"type": "json_schema"}}, "missing_parameter", "response_format.json_schema", "json_schema"),
        ({"logit_bias": {"1": 200}}, "invalid_value", "logit_bias[...]", "100"),
        ({"seed": True}, "invalid_value", "seed", "bool"),
        ({"n": 17}, "invalid_value", "n", "16"),
        ({"stream_options": {"includ_usage": True}}, "unknown_parameter", "stream_options.includ_usage", "include_usage"),
    ],
)
def test_refusals(extra: dict[str, Any], code: str, param: str, hint: str) -> None:
    error = refusal({"messages": HELLO, **extra})
    assert (error.code, error.param) == (code, param)
    assert hint in error.message


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_json_has_not(literal: bytes) -> None:
    error = refusal(b'{"messages":[{"role":"user","content":"hi"}],"temperature": ' + literal + b"}")
    assert (error.code, error.param) == ("invalid_value", "temperature")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", b'{"messages": [}', b'{"a":"\xff"}', b'{"a":1}x', b"\xef\xbb\xbf{}", b'{"a":"\\ud800"}']
)
def test_malformed_bodies(body: bytes) -> None:
    assert refusal(body).code in ("invalid_json", "unknown_parameter", "missing_parameter")


def test_a_body_that_is_no_object() -> None:
    assert refusal(b"[]").code == "invalid_value"


def test_fields_that_mean_nothing_here_are_accepted() -> None:
    harmless = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "safety_identifier": "s",
        "prompt_cache_key": "k", "prompt_cache_retention": "in_memory",
    }  # fmt: skip
    assert set(harmless) == set(IGNORED)
    decode_body(json.dumps({"messages": HELLO, **harmless}).encode(), ChatRequest)


def test_null_counts_as_absent() -> None:
    optional = {name: None for name in ChatRequest.__struct_fields__ if name != "messages"}
    with_nulls = decode_body(json.dumps({"messages": HELLO, **optional}).encode(), ChatRequest)
    assert with_nulls == decode_body(json.dumps({"messages": HELLO}).encode(), ChatRequest)


def test_every_unsupported_field_is_declared_somewhere() -> None:
    declared = {name for kind in KINDS for name in known_fields(kind, "")} | set(known_fields(ChatRequest, "stream_options"))
    assert set(UNSUPPORTED) <= declared


@settings(max_examples=300 * TIMES, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_one_refusal(body: bytes) -> None:
    for kind in KINDS:
        error = outcome(body, kind)
        assert error is None or error.kind.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300 * TIMES, deadline=None)
@given(st.data())
def test_any_value_in_any_field_is_taken_or_refused_by_name(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    name = data.draw(st.sampled_from(kind.__struct_fields__))
    body = {"messages": HELLO, "prompt": "x", "input": "x", "tokens": [1]}
    valid = {field: value for field, value in body.items() if field in kind.__struct_fields__}
    error = outcome(json.dumps({**valid, name: data.draw(JSON)}).encode("utf-8", "surrogatepass"), kind)
    if error is not None:
        assert error.kind.status == 400
        assert error.code == "invalid_json" or (error.param or "").split(".")[0].split("[")[0] == name
