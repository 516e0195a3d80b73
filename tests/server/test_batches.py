"""Batches over the wire: as the openai client expects them, resumed after kill -9, behind clients' requests, refused by line."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Running

from headrace.server.batch_file import MOST_LINE_BYTES, Journal, survey

pytestmark = pytest.mark.server
MakeServer = Callable[..., Running]
COMPLETIONS = "/v1/completions"


def line(custom_id: str, body: Any = None, **fields: Any) -> dict[str, Any]:
    body = body if body is not None else {"model": "echo", "prompt": "one two three", "max_tokens": 3}
    return {"custom_id": custom_id, "method": "POST", "url": COMPLETIONS, "body": body, **fields}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join((entry if isinstance(entry, bytes) else json.dumps(entry).encode()) + b"\n" for entry in lines)


def begin(running: Running, lines: list[Any], endpoint: str = COMPLETIONS, **fields: Any) -> Any:
    client = running.client()
    file = client.files.create(file=("lines.jsonl", jsonl(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)  # type: ignore[arg-type]


def ended(running: Running, batch_id: str, seconds: float = 30.0) -> Any:
    running.eventually(lambda: running.client().batches.retrieve(batch_id).status in ("completed", "failed", "cancelled"), seconds)
    return running.client().batches.retrieve(batch_id)


def completed(running: Running, batch_id: str) -> int:
    counts = running.client().batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed


def results(running: Running, file_id: str | None) -> dict[str, Any]:
    """Results by custom_id; each must be there once."""
    if file_id is None:
        return {}
    lines = [json.loads(text) for text in running.client().files.content(file_id).text.splitlines()]
    found = {entry["custom_id"]: entry for entry in lines}
    assert len(found) == len(lines)
    return found


def test_answers_are_those_of_calls(echo: Running) -> None:
    bodies = {
        str(number): {"model": "echo", "prompt": "a b c"[: 2 * number + 1], "max_tokens": 4, "seed": 1} for number in range(3)
    }
    wrong = [
        line("unknown model", {"model": "nobody", "prompt": "x"}),
        line("unknown field", {"model": "echo", "prompt": "x", "max_token": 3}),
        line("streamed", {"model": "echo", "prompt": "x", "stream": True}),
        line("urgent", {"model": "echo", "prompt": "x", "service_tier": "priority"}),
        line("too long", {"model": "echo", "prompt": "x", "max_tokens": 5000}),
    ]
    metadata = {"who": "me"}
    batch = begin(echo, [*(line(name, body) for name, body in bodies.items()), b"", *wrong], metadata=metadata)
    assert (batch.status, batch.object, batch.endpoint) == ("validating", "batch", COMPLETIONS)
    assert batch.expires_at == batch.created_at + 86_400
    batch = ended(echo, batch.id)
    assert (batch.status, batch.metadata) == ("completed", metadata)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (8, 3, 5)
    assert batch.completed_at >= batch.finalizing_at >= batch.in_progress_at >= batch.created_at
    good = results(echo, batch.output_file_id)
    for name, body in bodies.items():
        answer = good[name]["response"]
        direct = echo.post(COMPLETIONS, body).json()
        assert (answer["status_code"], good[name]["error"]) == (200, None)
        assert {**answer["body"], "id": 0, "created": 0} == {**direct, "id": 0, "created": 0}
    assert batch.usage.total_tokens == sum(entry["response"]["body"]["usage"]["total_tokens"] for entry in good.values())
    bad = results(echo, batch.error_file_id)
    codes = {name: entry["response"]["body"]["error"]["code"] for name, entry in bad.items()}
    assert codes == {
        "unknown model": "model_not_found", "unknown field": "unknown_parameter", "streamed": "unsupported_parameter",
        "urgent": "unsupported_parameter", "too long": "context_length_exceeded",
    }  # fmt: skip
    assert {entry["response"]["status_code"] for entry in bad.values()} == {400, 404}
    assert next(found.id for found in echo.client().batches.list(limit=1)) == batch.id
    assert echo.metric("headrace_batch_lines_total") >= 8
    assert echo.metric('headrace_batches{state="in_progress"}') == 0
    assert echo.metric("headrace_file_bytes") > 0
    file = echo.client().files.retrieve(batch.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_chat_and_embeddings(echo: Running) -> None:
    chat = line("c", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}, url="/v1/chat/completions")
    vectors = line("e", {"input": ["one", "two"]}, url="/v1/embeddings")
    first, second = begin(echo, [chat], "/v1/chat/completions"), begin(echo, [vectors], "/v1/embeddings")
    answers = results(echo, ended(echo, first.id).output_file_id)
    assert answers["c"]["response"]["body"]["object"] == "chat.completion"
    answers = results(echo, ended(echo, second.id).output_file_id)
    assert len(answers["e"]["response"]["body"]["data"]) == 2


@pytest.mark.parametrize(
    ("lines", "number", "param"),
    [
        ([line("a"), line("b"), line("a")], 3, "custom_id"),
        ([line("a"), b"{"], 2, None),
        ([b"\xff\xfe"], 1, None),
        ([line("a", url="/v1/embeddings")], 1, "url"),
        ([line("a", method="GET")], 1, "method"),
        ([line("")], 1, "custom_id"),
        ([{**line("a"), "colour": 1}], 1, "colour"),
        ([{"custom_id": "a"}], 1, "method"),
        ([b"[" * 1000], 1, None),
        ([line("a", {"prompt": "x" * MOST_LINE_BYTES}), line("b")], 1, None),
        ([b""], None, None),
    ],
)  # fmt: skip
def test_bad_files_fail_by_line(echo: Running, lines: list[Any], number: int | None, param: str | None) -> None:
    batch = ended(echo, begin(echo, lines).id)
    assert (batch.status, batch.output_file_id) == ("failed", None)
    error = batch.errors.data[0]
    assert (error.line, error.param) == (number, param)
    assert error.message


def test_bad_requests(echo: Running) -> None:
    client = echo.client()
    tuning = client.files.create(file=("x", b"x"), purpose="fine-tune")
    good = {"input_file_id": tuning.id, "endpoint": COMPLETIONS, "completion_window": "24h"}
    for change, param in (
        ({}, "input_file_id"), ({"endpoint": "/v1/moderations"}, "endpoint"), ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "id"), ({"metadata": {"k": "v" * 513}}, "metadata[...]"), ({"model": "x"}, "model"),
    ):  # fmt: skip
        assert echo.post("/v1/batches", {**good, **change}).json()["error"]["param"] == param
    assert echo.get("/v1/batches/batch_none").json()["error"]["code"] == "batch_not_found"
    assert echo.get("/v1/batches?limit=101").json()["error"]["param"] == "limit"
    with pytest.raises(openai.NotFoundError):
        client.batches.cancel("batch_none")


def test_cancel_keeps_what_is_done(own: MakeServer) -> None:
    running = own(engine=0.005)
    quick, endless = line("quick"), [line(f"slow {number}", {"prompt": "a b", "max_tokens": 2000}) for number in range(30)]
    batch = begin(running, [quick, *endless])
    running.eventually(lambda: completed(running, batch.id) == 1)
    with pytest.raises(openai.ConflictError):
        running.client().files.delete(batch.input_file_id)
    assert running.client().batches.cancel(batch.id).status == "cancelling"
    batch = ended(running, batch.id)
    assert (batch.status, batch.request_counts.completed, batch.error_file_id) == ("cancelled", 1, None)
    assert set(results(running, batch.output_file_id)) == {"quick"}
    running.eventually(lambda: running.metric("headrace_requests_live") == 0)
    assert batch.cancelled_at >= batch.cancelling_at
    with pytest.raises(openai.ConflictError):
        running.client().batches.cancel(batch.id)
    running.client().files.delete(batch.input_file_id)


def test_a_killed_server_goes_on_and_does_no_line_twice(own: MakeServer, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    lines = [line(f"line {number}", {"prompt": "a b", "max_tokens": 10 + 3 * number}) for number in range(40)]
    running = own(state_dir=state)
    batch = begin(running, lines)
    for _ in range(2):
        before = completed(running, batch.id)
        running.eventually(lambda: completed(running, batch.id) > before)  # noqa: B023
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        journal = tmp_path / "state" / "batch_journals" / f"{batch.id}.output.jsonl"
        done = journal.read_bytes()
        journal.write_bytes(done + b'{"id": "torn, as a crash of the machine leaves it')
        running = own(state_dir=state)
        assert completed(running, batch.id) >= done.count(b"\n")
    batch = ended(running, batch.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 40)
    assert set(results(running, batch.output_file_id)) == {f"line {number}" for number in range(40)}
    assert not list((tmp_path / "state" / "batch_journals").iterdir())


def test_clients_come_first(own: MakeServer) -> None:
    """Beside a client's request one line of a batch runs at a time; the queue's places are all for clients."""
    running = own(engine=0.01, max_queue=1)
    with running.http() as http:
        body = {"prompt": "a b", "max_tokens": 2000, "stream": True}
        with http.stream("POST", COMPLETIONS, json=body) as answer:
            stream = answer.iter_lines()  # kept: the response closes with it
            next(stream)
            batch = begin(running, [line(str(number), {"prompt": "a", "max_tokens": 20}) for number in range(40)])
            running.eventually(lambda: running.metric("headrace_requests_live") == 2)
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                assert running.metric("headrace_requests_live") <= 2
        running.eventually(lambda: running.metric("headrace_requests_live") > 4)
        answer = http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 2})
        assert answer.status_code == 200
    assert ended(running, batch.id).request_counts.completed == 40


def test_journals_take_off_what_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append(b'{"custom_id": "a"}\n')
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"custom_id": "b"')
    journal = Journal(path)
    assert journal.done == {"a"}
    journal.append(b'{"custom_id": "c"}\n')
    journal.close()
    assert path.read_bytes() == b'{"custom_id": "a"}\n{"custom_id": "c"}\n'


def test_surveys_stop_at_a_hundred_errors(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"{\n" * 1000)
    assert len(survey(path, COMPLETIONS).errors) == 100
