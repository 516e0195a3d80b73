"""``speculation`` and ``prediction`` of bodies: what they bring, what is refused, and that the answer is the same."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Running

pytestmark = [pytest.mark.server, pytest.mark.model]
TEXT = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu"
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": f"Repeat exactly, and write nothing else: {TEXT}"}],
    "temperature": 0,
    "max_tokens": 48,
    "logprobs": True,
}


def post(real: Running, **fields: Any) -> tuple[int, dict[str, Any]]:
    with real.http() as http:
        answer = http.post("/v1/chat/completions", json={**BODY, **fields})
    return answer.status_code, answer.json()


def test_an_expected_answer_comes_in_fewer_steps_and_is_the_same(real: Running) -> None:
    status, plain = post(real, speculation="off")
    assert status == 200
    assert plain["usage"]["completion_tokens_details"] == {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
    said = plain["choices"][0]["message"]["content"]
    for prediction in (said, [{"type": "text", "text": said[:20]}, {"type": "text", "text": said[20:]}]):
        before = real.metric("headrace_draft_tokens_accepted_total")
        status, guessed = post(real, prediction={"type": "content", "content": prediction}, speculation="auto")
        assert status == 200
        assert guessed["choices"] == plain["choices"]
        details = guessed["usage"]["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] > 4
        assert guessed["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
        assert real.metric("headrace_draft_tokens_accepted_total") >= before + details["accepted_prediction_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"speculation": "always"}, "speculation"),
        ({"speculation": {"max_tokens": 33}}, "speculation.max_tokens"),
        ({"speculation": {"max_tokens": -1}}, "speculation.max_tokens"),
        ({"speculation": {"most": 3}}, "speculation.most"),
        ({"prediction": {"type": "content"}}, "prediction.content"),
        ({"prediction": {"type": "image", "content": "x"}}, "prediction.type"),
        ({"prediction": {"type": "content", "content": "word " * 20_000}}, "prediction"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_by_name(real: Running, fields: dict[str, Any], param: str) -> None:
    status, answer = post(real, **fields)
    assert status == 400
    assert answer["error"]["param"] == param


def test_few_tokens_are_drafted_where_few_are_allowed(real: Running) -> None:
    _, plain = post(real, speculation="off")
    status, answer = post(real, speculation={"max_tokens": 1})
    assert status == 200
    assert answer["choices"] == plain["choices"]
