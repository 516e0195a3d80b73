"""The Responses API with OpenAI's own client: items, events, what is kept, and what runs without a connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Running

pytestmark = [pytest.mark.server, pytest.mark.model]

MODEL = "smollm2-135m-instruct"
QUESTION = "Name three colours."
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "get the weather",
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}  # fmt: skip


def chat(real: Running, messages: list[Any], tokens: int = 12) -> str:
    """The same call over the chat API."""
    answer = real.post("/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "temperature": 0}).json()
    text: str = answer["choices"][0]["message"]["content"]
    return text


def test_the_same_answer_as_chat(real: Running) -> None:
    answer = real.client().responses.create(
        model=MODEL, input=QUESTION, instructions="Be brief.", max_output_tokens=12, temperature=0, metadata={"for": "a test"}
    )
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    assert answer.output_text == chat(real, plain)
    assert (answer.status, answer.object, answer.metadata) == ("incomplete", "response", {"for": "a test"})
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 12
    assert answer.usage.total_tokens == answer.usage.input_tokens + 12


def test_a_conversation_goes_on_where_it_was(real: Running) -> None:
    client = real.client()
    first = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=10, temperature=0)
    second = client.responses.create(
        model=MODEL, input="And one more?", previous_response_id=first.id, max_output_tokens=10, temperature=0
    )
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And one more?"},
    ]
    assert second.output_text == chat(real, turns, 10)
    assert second.previous_response_id == first.id
    items = client.responses.input_items.list(second.id).data
    assert [item.content[0].text for item in items] == ["And one more?"]  # type: ignore[union-attr,index]
    by_items = client.responses.create(model=MODEL, input=turns, max_output_tokens=10, temperature=0)  # type: ignore[arg-type]
    assert by_items.output_text == second.output_text
    counted = client.responses.input_tokens.count(model=MODEL, input="And one more?", previous_response_id=first.id)
    assert second.usage is not None
    assert counted.input_tokens == second.usage.input_tokens


def test_the_stream_is_the_whole(real: Running) -> None:
    made: dict[str, Any] = {"model": MODEL, "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
    whole = real.client().responses.create(**made)
    events: list[Any] = list(real.client().responses.create(**made, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == 12
    schema = {"type": "object", "properties": {"days": {"enum": [1]}}, "required": ["days"], "additionalProperties": False}
    made = {**made, "max_output_tokens": 60, "text": {"format": {"type": "json_schema", "name": "days", "schema": schema}}}
    with real.client().responses.stream(**made) as stream:
        assert json.loads(stream.get_final_response().output_text) == {"days": 1}


def test_functions_are_called_and_answered(real: Running) -> None:
    client = real.client()
    made: dict[str, Any] = {
        "model": MODEL, "input": "What is the weather in Paris?", "tools": [TOOL], "tool_choice": "required",
        "parallel_tool_calls": False, "max_output_tokens": 90, "temperature": 0,
    }  # fmt: skip
    answer = client.responses.create(**made)
    [call] = answer.output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert set(json.loads(call.arguments)) == {"city"}
    with client.responses.stream(**made) as stream:
        events = list(stream)
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(pieces) == done.arguments == call.arguments
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "19 degrees"}]
    after = client.responses.create(
        model=MODEL, input=output, previous_response_id=answer.id, tools=[TOOL], tool_choice="none", max_output_tokens=6
    )
    assert after.output_text
    named = client.responses.create(**{**made, "tool_choice": {"type": "function", "name": "get_weather"}})
    assert [item.type for item in named.output] == ["function_call"]


def test_structured_output_and_logprobs(real: Running) -> None:
    schema = {"type": "object", "properties": {"days": {"enum": [1, 2, 3]}}, "required": ["days"], "additionalProperties": False}
    answer = real.client().responses.create(
        model=MODEL, input="How many days?", max_output_tokens=60, top_logprobs=2, include=["message.output_text.logprobs"],
        text={"format": {"type": "json_schema", "name": "days", "schema": schema}},
    )  # fmt: skip
    assert json.loads(answer.output_text)["days"] in (1, 2, 3)
    part: Any = answer.output[0].content[0]  # type: ignore[union-attr,index]
    assert len(part.logprobs) >= 3
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_what_is_not_stored_is_gone_and_what_is_deleted_too(real: Running) -> None:
    client = real.client()
    kept = client.responses.create(model=MODEL, input="Hi", max_output_tokens=2)
    assert client.responses.retrieve(kept.id).output_text == kept.output_text
    client.responses.delete(kept.id)
    passing = client.responses.create(model=MODEL, input="Hi", max_output_tokens=2, store=False)
    for gone in (kept.id, passing.id, "resp-none"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, input="Hi", previous_response_id=passing.id)


def test_in_the_background(real: Running) -> None:
    client = real.client()
    begun = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=12, temperature=0, background=True)
    assert begun.status in ("queued", "in_progress")
    real.eventually(lambda: client.responses.retrieve(begun.id).status == "incomplete")
    assert client.responses.retrieve(begun.id).output_text == chat(real, [{"role": "user", "content": QUESTION}])
    events = list(client.responses.retrieve(begun.id, stream=True, starting_after=2))
    assert [event.sequence_number for event in events] == list(range(3, 3 + len(events)))
    assert events[-1].type == "response.incomplete"


def test_a_background_response_outlives_its_reader_and_can_be_cancelled(own: Callable[..., Running]) -> None:
    running = own(engine=0.02)
    client = running.client()
    stream = client.responses.create(model="echo", input="word " * 20, max_output_tokens=1500, background=True, stream=True)
    first = next(iter(stream))
    assert first.type == "response.created"
    name = first.response.id
    stream.close()
    running.eventually(lambda: client.responses.retrieve(name).status == "in_progress")
    assert client.responses.cancel(name).status == "cancelled"
    assert client.responses.cancel(name).status == "cancelled"
    running.eventually(lambda: running.metric("headrace_requests_running") == 0)
    foreground = client.responses.create(model="echo", input="Hi", max_output_tokens=2)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(foreground.id)


def test_kept_over_a_restart_and_said_of_what_was_cut_off(own: Callable[..., Running], tmp_path: Path) -> None:
    running = own(engine=0.02, state_dir=str(tmp_path))
    client = running.client()
    done = client.responses.create(model="echo", input="Hi there", max_output_tokens=3)
    cut = client.responses.create(model="echo", input="Hi there", max_output_tokens=1500, background=True)
    running.process.kill()
    running.stop()
    again = own(engine=0.02, state_dir=str(tmp_path))
    assert again.client().responses.retrieve(done.id).output_text == done.output_text
    failed = again.client().responses.retrieve(cut.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "ask again" in failed.error.message
    after = again.client().responses.create(model="echo", input="More", previous_response_id=done.id, max_output_tokens=3)
    assert after.status == "incomplete"


def test_each_key_has_its_own(own: Callable[..., Running], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    running = own(key="one", api_key_file=str(keys))
    kept = running.client().responses.create(model="echo", input="Hi", max_output_tokens=2)
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="two", max_retries=0) as stranger:
        for act in (stranger.responses.retrieve, stranger.responses.delete, stranger.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                act(kept.id)
        with pytest.raises(openai.NotFoundError):
            stranger.responses.create(model="echo", input="Hi", previous_response_id=kept.id)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "image_generation_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "input"),
        ({"background": True, "store": False}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_refusals(real: Running, change: dict[str, Any], param: str) -> None:
    answer = real.post("/v1/responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 2, **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
