"""Plain completions over the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Running

pytestmark = [pytest.mark.server, pytest.mark.model]
PROMPT = "The capital of France is"


def complete(running: Running, **body: Any) -> Any:
    answer = running.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_answer_of_the_client(real: Running) -> None:
    answer = real.client().completions.create(model="smollm2-135m-instruct", prompt=PROMPT, max_tokens=6, temperature=0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


def test_sixteen_tokens_when_nothing_is_said(real: Running) -> None:
    assert complete(real, max_tokens=None, ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_every_kind_of_prompt(real: Running) -> None:
    ids = real.post("/tokenize", {"prompt": PROMPT}).json()["tokens"]
    text = complete(real)["choices"][0]["text"]
    assert complete(real, prompt=ids)["choices"][0]["text"] == text
    both = complete(real, prompt=[PROMPT, "One two"])
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert both["choices"][0]["text"] == text
    assert complete(real, prompt=[ids, ids[:2]])["choices"][0]["text"] == text


def test_logprobs_run_parallel_with_offsets(real: Running) -> None:
    choice = complete(real, logprobs=2)["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 6
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"].startswith(token, offset)
    assert all(len(top) >= 2 for top in logprobs["top_logprobs"])


def test_echo_scores_a_prompt(real: Running) -> None:
    answer = complete(real, echo=True, max_tokens=0, logprobs=1)
    choice = answer["choices"][0]
    assert choice["text"] == PROMPT
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == PROMPT
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["text_offset"][0] == 0
    assert answer["usage"]["completion_tokens"] == 0


def test_echo_comes_first_in_streams(real: Running) -> None:
    whole = complete(real, echo=True, logprobs=1)["choices"][0]
    with real.http() as http:
        body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "echo": True, "logprobs": 1, "stream": True}
        lines = http.post("/v1/completions", json=body).text.split("\n\n")
    got = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert "".join(choice["text"] for choice in got) == whole["text"]
    assert got[-1]["finish_reason"] == "length"
    tokens = [token for choice in got if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
    assert tokens == whole["logprobs"]["tokens"]


def test_best_of_keeps_the_best(real: Running) -> None:
    body = {"seed": 5, "temperature": 1.0, "max_tokens": 5, "ignore_eos": True, "logprobs": 0}
    every = complete(real, n=4, **body)
    best = complete(real, n=1, best_of=4, **body)
    score = [sum(choice["logprobs"]["token_logprobs"]) for choice in every["choices"]]
    assert best["choices"][0]["text"] == every["choices"][score.index(max(score))]["text"]
    assert best["usage"]["completion_tokens"] == 20
    assert len(best["choices"]) == 1


@pytest.mark.parametrize(
    ("extra", "code", "param"),
    [
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [[]]}, "invalid_value", "prompt[0]"),
        ({"prompt": ["a", ""]}, "invalid_value", "prompt[1]"),
        ({"prompt": ["a", 1]}, "invalid_value", "prompt"),
        ({"prompt": [10_000_000]}, "invalid_value", "prompt[0]"),
        ({"prompt": [[1], [1, 10_000_000]]}, "invalid_value", "prompt[1][1]"),
        ({"prompt": ["a"] * 65}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 20, "n": 16}, "invalid_value", "n"),
        ({"prompt": [1] * 100_000}, "context_length_exceeded", "prompt"),
        ({"prompt": "word " * 100_000}, "context_length_exceeded", "prompt"),
        ({"suffix": "x"}, "unsupported_parameter", "suffix"),
        ({"best_of": 1, "n": 2}, "invalid_value", "best_of"),
        ({"best_of": 2, "stream": True}, "invalid_value", "best_of"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ],
)
def test_refusals(real: Running, extra: dict[str, Any], code: str, param: str) -> None:
    answer = real.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 2, **extra})
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


def test_render_and_aliases(real: Running) -> None:
    ids = real.post("/tokenize", {"prompt": PROMPT}).json()["tokens"]
    for path in ("/completions/render", "/v1/completions/render"):
        assert real.post(path, {"prompt": PROMPT}).json()["data"][0] == {"prompt": PROMPT, "ids": ids, "count": len(ids)}
        assert real.post(path, {"prompt": ids}).json()["data"][0]["prompt"] == PROMPT
    assert (
        complete(real)["choices"]
        == real.post("/completions", {"prompt": PROMPT, "max_tokens": 6, "temperature": 0}).json()["choices"]
    )
