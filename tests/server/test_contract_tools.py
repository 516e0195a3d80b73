"""Tool calls over the wire: valid by construction, streamed pieces equal to the whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Running

pytestmark = [pytest.mark.server, pytest.mark.model]


def tool(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"{name} it", "parameters": schema}}


TOOLS: list[Any] = [
    tool("get_weather", {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}),
    tool("get_time", {"zone": {"enum": ["CET", "UTC"]}}),
]
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
BODY: dict[str, Any] = {"messages": ASK, "tools": TOOLS, "max_tokens": 90, "temperature": 0}


def check_call(name: str, arguments: str) -> None:
    parsed = json.loads(arguments)
    if name == "get_weather":
        assert set(parsed) == {"city", "days"}
        assert 1 <= parsed["days"] <= 9
    else:
        assert (name, set(parsed)) == ("get_time", {"zone"})
        assert parsed["zone"] in ("CET", "UTC")


def test_required_call_of_the_client(real: Running) -> None:
    answer = real.client().chat.completions.create(
        model="smollm2-135m-instruct", messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=90, temperature=0
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = choice.message.tool_calls
    assert calls
    for call in calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        check_call(call.function.name, call.function.arguments)


def test_named_and_single_calls(real: Running) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    for extra, names in (({"tool_choice": named}, ["get_time"]), ({"tool_choice": "required", "parallel_tool_calls": False}, None)):
        calls = real.post("/v1/chat/completions", {**BODY, **extra}).json()["choices"][0]["message"]["tool_calls"]
        assert len(calls) == 1
        assert names is None or [call["function"]["name"] for call in calls] == names
        check_call(calls[0]["function"]["name"], calls[0]["function"]["arguments"])


def test_streamed_pieces_join_to_the_whole(real: Running) -> None:
    body = {**BODY, "tool_choice": "required", "seed": 3}
    whole = real.post("/v1/chat/completions", body).json()["choices"][0]
    with real.http() as http:
        text = http.post("/v1/chat/completions", json={**body, "stream": True}).text
    got = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n") if line.startswith("data: {")]
    joined: list[dict[str, Any]] = []
    for piece in (piece for choice in got for piece in choice["delta"].get("tool_calls", [])):
        if "id" in piece:
            assert piece["index"] == len(joined)
            joined.append({"name": piece["function"]["name"], "arguments": ""})
        else:
            assert "name" not in piece["function"]
        joined[piece["index"]]["arguments"] += piece["function"].get("arguments", "")
    assert joined == [call["function"] for call in whole["message"]["tool_calls"]]
    assert got[-1]["finish_reason"] == "tool_calls"


def test_no_call_when_none_is_wanted(real: Running) -> None:
    choice = real.post("/v1/chat/completions", {**BODY, "tool_choice": "none", "max_tokens": 8}).json()["choices"][0]
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"]


def test_results_go_back_into_the_prompt(real: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "UTC"}'}}
    messages = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": "12:34"})
    prompt = real.post("/v1/chat/completions/render", {"messages": messages, "tools": TOOLS}).json()["data"][0]["prompt"]
    assert "12:34" in prompt
    assert "get_weather" in prompt


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "get_tim"}}}, "tool_choice"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [TOOLS[0]] * 65}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
    ],
)
def test_refusals(real: Running, extra: dict[str, Any], param: str) -> None:
    answer = real.post("/v1/chat/completions", {**BODY, **extra})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
