"""Chat completions over the wire, as the OpenAI client and a plain HTTP client see them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from conftest import Running

pytestmark = [pytest.mark.server, pytest.mark.model]
ASK: list[Any] = [{"role": "user", "content": "Name three colours."}]


def events(running: Running, path: str, body: dict[str, Any]) -> list[str]:
    """The data lines of a stream, with its framing checked."""
    with running.http() as http, http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "no-cache" in answer.headers["cache-control"]
        assert answer.headers["x-accel-buffering"] == "no"
        text = answer.read().decode()
    assert text.endswith("data: [DONE]\n\n")
    frames = text.split("\n\n")[:-1]
    assert all(frame.startswith("data: ") or frame.startswith(":") for frame in frames)
    return [frame[6:] for frame in frames if frame.startswith("data: ")]


def chunks(running: Running, **body: Any) -> list[dict[str, Any]]:
    lines = events(running, "/v1/chat/completions", {"messages": ASK, "max_tokens": 12, "temperature": 0, **body})
    return [json.loads(line) for line in lines[:-1]]


def test_answer_of_the_client(real: Running) -> None:
    model = real.client().models.list().data[0].id
    answer = real.client().chat.completions.create(model=model, messages=ASK, max_tokens=12, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == model
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_stream_is_role_text_finish_done(real: Running) -> None:
    got = chunks(real)
    assert len({(chunk["id"], chunk["created"]) for chunk in got}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in got)
    deltas = [chunk["choices"][0]["delta"] for chunk in got]
    assert deltas[0]["role"] == "assistant"
    assert not any("role" in delta for delta in deltas[1:])
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in got]
    assert finishes[-1] == "length"
    assert set(finishes[:-1]) == {None}
    assert deltas[-1] == {}
    assert "usage" not in got[0]


def test_stream_equals_answer(real: Running) -> None:
    whole = real.post("/v1/chat/completions", {"messages": ASK, "max_tokens": 12, "temperature": 0}).json()
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(real))
    assert text == whole["choices"][0]["message"]["content"]


def test_usage_chunk_is_last_and_has_no_choices(real: Running) -> None:
    got = chunks(real, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in got[:-1])
    assert got[-1]["choices"] == []
    assert got[-1]["usage"]["completion_tokens"] == 12
    assert got[-1]["id"] == got[0]["id"]


def test_choices_interleave_and_usage_counts_the_prompt_once(real: Running) -> None:
    one = chunks(real, stream_options={"include_usage": True})[-1]["usage"]
    always = chunks(real, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in always]
    assert counts == sorted(counts)
    assert (counts[-1], always[-1]["usage"]["prompt_tokens"]) == (one["completion_tokens"], one["prompt_tokens"])
    got = chunks(real, n=3, temperature=1.0, seed=7, stream_options={"include_usage": True})
    finished = [choice["index"] for chunk in got for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(finished) == [0, 1, 2]
    assert got[-1]["usage"]["prompt_tokens"] == one["prompt_tokens"]
    assert got[-1]["usage"]["completion_tokens"] > 12
    roles = [choice["index"] for chunk in got for choice in chunk["choices"] if "role" in choice["delta"]]
    assert sorted(roles) == [0, 1, 2]


def test_seed_fixes_the_answer_and_is_reported(real: Running) -> None:
    body = {"messages": ASK, "max_tokens": 16, "temperature": 1.0}
    first = real.post("/v1/chat/completions", body)
    again = real.post("/v1/chat/completions", {**body, "seed": int(first.headers["x-headrace-seed"])})
    assert first.json()["choices"] == again.json()["choices"]
    other = real.post("/v1/chat/completions", {**body, "seed": 123})
    assert other.headers["x-headrace-seed"] == "123"


def test_logprobs_have_bytes_that_make_the_text(real: Running) -> None:
    answer = real.client().chat.completions.create(
        model=real.client().models.list().data[0].id, messages=ASK, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    raw = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content)
    assert raw.decode() == choice.message.content
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert entry.logprob <= 0
        assert entry.token == bytes(entry.bytes or []).decode("utf-8", "replace")


def test_streamed_logprobs_are_those_of_the_answer(real: Running) -> None:
    body = {"messages": ASK, "max_tokens": 8, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = real.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    got = chunks(real, max_tokens=8, logprobs=True, top_logprobs=2)
    parts = [entry for chunk in got for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert parts == whole


def test_stop_strings_never_show(real: Running) -> None:
    body = {"messages": ASK, "max_tokens": 40, "temperature": 0}
    text = real.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    stop = text[9:14]
    for stream in (False, True):
        if stream:
            got = chunks(real, max_tokens=40, stop=[stop])
            short = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got)
            finish = got[-1]["choices"][0]["finish_reason"]
        else:
            choice = real.post("/v1/chat/completions", {**body, "stop": stop}).json()["choices"][0]
            short, finish = choice["message"]["content"], choice["finish_reason"]
        assert short == text[: text.index(stop)]
        assert finish == "stop"


def test_the_sooner_limit_wins(real: Running) -> None:
    for limits in ({"max_tokens": 3, "max_completion_tokens": 9}, {"max_tokens": 9, "max_completion_tokens": 3}):
        answer = real.post("/v1/chat/completions", {"messages": ASK, "temperature": 0, **limits}).json()
        assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("extra", "check"),
    [
        ({"response_format": {"type": "json_object"}}, lambda text: isinstance(json.loads(text), dict)),
        ({"choice": ["red", "green"]}, lambda text: text in ("red", "green")),
        ({"regex": "[0-9]{3}-[a-c]{2}"}, lambda text: len(text) == 6 and text[3] == "-"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "x",
                        "schema": {
                            "type": "object", "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 9}},
                            "required": ["age"], "additionalProperties": False,
                        },
                    },
                }
            },
            lambda text: 1 <= json.loads(text)["age"] <= 9,
        ),
    ],
)  # fmt: skip
def test_constraints_hold(real: Running, extra: dict[str, Any], check: Any) -> None:
    body = {"messages": ASK, "max_tokens": 200, "temperature": 0, **extra}
    choice = real.post("/v1/chat/completions", body).json()["choices"][0]
    if choice["finish_reason"] == "stop":
        assert check(choice["message"]["content"])
    else:
        assert extra == {"response_format": {"type": "json_object"}}, "only free JSON may run to the limit"


def test_messages_of_all_kinds_render(real: Running) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], "name": "ann"},
        {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": []},
        {"role": "user", "content": "Bye"},
    ]
    rendered = real.post("/v1/chat/completions/render", {"messages": messages}).json()["data"][0]
    assert "Hello" in rendered["prompt"]
    assert rendered["count"] == len(rendered["ids"])
    answer = real.client().chat.completions.create(model="smollm2-135m-instruct", messages=messages, max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == rendered["count"]


def test_prompt_logprobs(real: Running) -> None:
    answer = real.post("/v1/chat/completions", {"messages": ASK, "max_tokens": 1, "prompt_logprobs": 1}).json()
    entries = answer["prompt_logprobs"]
    assert len(entries) == answer["usage"]["prompt_tokens"]
    assert entries[0] is None
    assert all(entry["logprob"] <= 0 for entry in entries[1:])


def test_errors_are_the_clients_own_classes(real: Running) -> None:
    client = real.client()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=ASK)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="smollm2-135m-instruct", messages=ASK, temperature=3)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="smollm2-135m-instruct", messages=ASK, max_tokens=900_000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model="smollm2-135m-instruct", messages=ASK, extra_body={"temprature": 1})
    assert "did you mean 'temperature'?" in unknown.value.message


def test_free_grammars_are_refused_by_name(real: Running) -> None:
    error = real.post("/v1/chat/completions", {"messages": ASK, "grammar": 'start: "a"'}).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "grammar")


def test_a_refused_path_is_short_and_printable(real: Running) -> None:
    body = {"messages": ASK, "logit_bias": {"x\x1b" * 4000: "high"}}
    error = real.post("/v1/chat/completions", body).json()["error"]
    assert error["code"] == "invalid_value"
    assert len(error["param"]) <= 128
    assert error["param"].isprintable()


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"regex": "("}, "regex"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
            "response_format",
        ),
    ],
)
def test_bad_grammars_name_their_field(real: Running, extra: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        answer = real.post("/v1/chat/completions", {"messages": ASK, "max_tokens": 4, "stream": stream, **extra})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_grammar"
        assert answer.json()["error"]["param"] == param


def test_fields_that_need_each_other(real: Running) -> None:
    for extra, param in (
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"regex": "a", "choice": ["a"]}, "choice"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"stop_token_ids": [10_000_000]}, "stop_token_ids[0]"),
        ({"logit_bias": {"10000000": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    ):
        answer = real.post("/v1/chat/completions", {"messages": ASK, **extra})
        assert answer.status_code == 400, extra
        assert answer.json()["error"]["param"] == param


def test_bias_and_stop_tokens_work(real: Running) -> None:
    red = real.post("/tokenize", {"prompt": " red"}).json()["tokens"][0]
    body = {"messages": ASK, "max_tokens": 5, "temperature": 0}
    biased = real.post("/v1/chat/completions", {**body, "logit_bias": {str(red): 100}}).json()["choices"][0]
    assert biased["message"]["content"] == " red" * 5
    stopped = real.post("/v1/chat/completions", {**body, "logit_bias": {str(red): 100}, "stop_token_ids": [red]}).json()
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["choices"][0]["message"]["content"] == ""
