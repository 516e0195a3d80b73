"""The Messages API with Anthropic's own client, and its dialect on the wire."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from conftest import Running

pytestmark = [pytest.mark.server, pytest.mark.model]

GREEDY = {"temperature": 0}  # the client has no name for it
MODEL = "smollm2-135m-instruct"
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
BODY: dict[str, Any] = {"model": MODEL, "messages": ASK, "max_tokens": 12, "temperature": 0}
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "get the weather",
    "input_schema": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
        "additionalProperties": False,
    },
}  # fmt: skip


@pytest.fixture
def client(real: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0, timeout=30.0) as made:
        yield made


def chat(real: Running, **extra: Any) -> dict[str, Any]:
    """The same call over the chat API."""
    body = {"messages": ASK, "max_tokens": 12, "temperature": 0, **extra}
    answer: dict[str, Any] = real.post("/v1/chat/completions", body).json()
    return answer


def test_the_same_answer_as_chat(real: Running, client: anthropic.Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=12, messages=ASK, extra_body=GREEDY)
    same = chat(real)
    assert message.content[0].type == "text"
    assert message.content[0].text == same["choices"][0]["message"]["content"]
    assert (message.stop_reason, message.role, message.type) == ("max_tokens", "assistant", "message")
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == same["usage"]["prompt_tokens"]
    assert usage.output_tokens == 12
    assert message._request_id


def test_the_stream_is_the_whole(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model=MODEL, max_tokens=12, messages=ASK, extra_body=GREEDY)
    with client.messages.stream(model=MODEL, max_tokens=12, messages=ASK, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text  # type: ignore[union-attr]
    assert [block.type for block in final.content] == [block.type for block in whole.content]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_events_in_their_order(real: Running) -> None:
    with real.http() as http:
        answer = http.post("/v1/messages", json={**BODY, "stream": True})
    names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    kinds = [json.loads(line[6:])["type"] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert names == kinds
    assert names[:2] == ["message_start", "content_block_start"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "[DONE]" not in answer.text
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


def test_system_stops_and_blocks(real: Running, client: anthropic.Anthropic) -> None:
    blocks: list[Any] = [
        {"type": "text", "text": "Count from one ", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "to ten."},
    ]
    messages: list[Any] = [{"role": "user", "content": blocks}]
    system = [{"type": "text", "text": "Be brief."}]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count from one to ten."}]
    whole = client.messages.create(model=MODEL, max_tokens=30, messages=messages, system=system, extra_body=GREEDY)  # type: ignore[arg-type]
    text = whole.content[0].text  # type: ignore[union-attr]
    assert text == chat(real, messages=plain, max_tokens=30)["choices"][0]["message"]["content"]
    word = text.split()[1]
    cut = client.messages.create(
        model=MODEL, max_tokens=30, messages=messages, system="Be brief.", extra_body=GREEDY, stop_sequences=[word, "never said"]
    )
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", word)
    assert cut.content[0].text == text[: text.index(word)]  # type: ignore[union-attr]


def test_a_tool_is_called_and_its_result_read(real: Running, client: anthropic.Anthropic) -> None:
    wanted: Any = {"type": "any", "disable_parallel_tool_use": True}
    made: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 90,
        "messages": ASK,
        "tools": [TOOL],
        "tool_choice": wanted,
        "extra_body": GREEDY,
    }
    whole = client.messages.create(**made)
    assert whole.stop_reason == "tool_use"
    [call] = [block for block in whole.content if block.type == "tool_use"]
    assert call.name == "get_weather"
    assert set(call.input) == {"city"}
    with client.messages.stream(**made) as stream:
        [streamed] = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert (streamed.name, streamed.input) == (call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "19 degrees"}]}
    turns: list[Any] = [*ASK, {"role": "assistant", "content": [call.model_dump()]}, {"role": "user", "content": [result]}]
    after = client.messages.create(**{**made, "messages": turns, "tool_choice": {"type": "none"}, "max_tokens": 8})
    assert after.usage.output_tokens >= 1
    named = client.messages.create(**{**made, "tool_choice": {"type": "tool", "name": "get_weather"}})
    assert [block.type for block in named.content] == ["tool_use"]


def test_structured_output(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"days": {"enum": [1, 2, 3]}}, "required": ["days"], "additionalProperties": False}
    message = client.messages.create(
        model=MODEL, max_tokens=60, messages=ASK, output_config={"format": {"type": "json_schema", "schema": schema}}
    )
    assert json.loads(message.content[0].text)["days"] in (1, 2, 3)  # type: ignore[union-attr]


def test_tokens_are_counted_without_running(real: Running, client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=ASK, tools=[TOOL])  # type: ignore[list-item]
    tool = {
        "type": "function",
        "function": {"name": TOOL["name"], "description": TOOL["description"], "parameters": TOOL["input_schema"]},
    }
    rendered = real.post("/v1/chat/completions/render", {"messages": ASK, "tools": [tool]}).json()
    assert counted.input_tokens == rendered["data"][0]["count"]


def test_more_than_the_context_holds_is_cut_and_said(echo: Running) -> None:
    """Clients name the largest answer that they would take: that is no error."""
    body = {**BODY, "model": "echo", "max_tokens": 100_000}
    with echo.http() as http, http.stream("POST", "/v1/messages", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
    long = {"role": "user", "content": "word " * 3000}
    refused = echo.post("/v1/messages", {**body, "messages": [long]})
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "no reasoning model"),
        ({"messages": [*ASK, {"role": "assistant", "content": "It is"}]}, "last turn must be the user's"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tool_choice": {"type": "any"}}, "'tool_choice' needs 'tools'"),
        ({"container": "x"}, "runs no code"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_refusals_in_the_clients_dialect(real: Running, change: dict[str, Any], words: str) -> None:
    body = {name: value for name, value in {**BODY, **change}.items() if value is not None}
    answer = real.post("/v1/messages", body)
    assert answer.status_code == 400
    refusal = answer.json()
    assert (refusal["type"], refusal["error"]["type"]) == ("error", "invalid_request_error")
    assert words in refusal["error"]["message"]


def test_errors_of_the_client(own: Callable[..., Running], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-one\n")
    running = own(key="sk-one", api_key_file=str(keys))
    with anthropic.Anthropic(base_url=running.url, api_key="sk-one", max_retries=0) as client:
        assert client.messages.create(model="echo", max_tokens=3, messages=ASK).usage.output_tokens == 3
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="nowhere", max_tokens=3, messages=ASK)
    stranger = anthropic.Anthropic(base_url=running.url, api_key="sk-two", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="echo", max_tokens=3, messages=ASK)
    assert running.get("/v1/messages").status_code == 405
