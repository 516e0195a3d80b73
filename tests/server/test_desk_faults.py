"""Lasting work under fire: hang-ups, calls at the same moment, a disk that is full for a while, bounds on what piles up."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Running, launch_server

from headrace.server import batch_desk
from headrace.server.batch_desk import BatchDesk
from headrace.server.protocol.batches import BatchRequest
from headrace.server.protocol.responses import PlainFormat, ResponseObject, TextConfig
from headrace.server.storage import response_store
from headrace.server.storage.disk import Scribe
from headrace.server.storage.file_store import FileLimits, FileStore, NewFile, StoredFile
from headrace.server.storage.folder import StateFolder
from headrace.server.storage.response_store import KeptResponse, ResponseStore

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def target() -> Iterator[Running]:
    """A server whose desk is attacked, and which must outlive that."""
    running = launch_server(0.02)
    yield running
    assert running.stop() == 0, "\n".join(running.lines)
    assert not [line for line in running.lines if "Traceback" in line or "never retrieved" in line], "\n".join(running.lines)


def batch_file(running: Running, lines: int, tokens: int = 30) -> str:
    body = {"model": "echo", "prompt": "one two", "max_tokens": tokens}
    data = [{"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body} for n in range(lines)]
    text = "".join(json.dumps(entry) + "\n" for entry in data).encode()
    return running.client().files.create(file=("lines.jsonl", text), purpose="batch").id


def wanted(file: str, **fields: Any) -> dict[str, Any]:
    return {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h", **fields}


def at_once(running: Running, path: str, body: Any, times: int) -> list[httpx.Response]:
    async def all_of_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=running.url, timeout=30, trust_env=False) as http:
            return await asyncio.gather(*(http.post(path, json=body) for _ in range(times)))

    return asyncio.run(all_of_them())


def records(running: Running, room: str) -> set[str]:
    assert running.scratch is not None
    return {path.stem for path in (Path(running.scratch) / room).glob("*.json")}


def test_who_cancels_twice_at_a_moment_loses_nothing(target: Running) -> None:
    client = target.client()
    file = batch_file(target, 60)
    for _ in range(4):
        batch = client.batches.create(**wanted(file)).id
        target.eventually(lambda batch=batch: client.batches.retrieve(batch).status == "in_progress")  # type: ignore[misc]
        time.sleep(0.1)
        assert {answer.status_code for answer in at_once(target, f"/v1/batches/{batch}/cancel", {}, 6)} == {200}
        target.eventually(lambda batch=batch: client.batches.retrieve(batch).status in ("cancelled", "failed"))  # type: ignore[misc]
        assert client.batches.retrieve(batch).status == "cancelled"


def test_a_batch_is_taken_in_whole_or_not_at_all(target: Running) -> None:
    """Whoever hangs up while it is written down: what the disk knows, the server knows, too."""
    target.hang_up("/v1/batches", wanted(batch_file(target, 1, 2)), 40)
    client = target.client()
    target.eventually(lambda: records(target, "batches") == {one.id for one in client.batches.list(limit=100)})
    target.eventually(lambda: {one.status for one in client.batches.list(limit=100)} <= {"completed", "cancelled"})


def test_background_responses_have_a_bound_that_holds_at_once(target: Running) -> None:
    asked = at_once(target, "/v1/responses", {"model": "echo", "input": "hi", "background": True, "max_output_tokens": 90}, 100)
    codes = [answer.status_code for answer in asked]
    assert codes.count(200) == 64
    assert codes.count(429) == 36
    target.hang_up("/v1/responses", {"model": "echo", "input": "hi", "background": True, "max_output_tokens": 2}, 10)

    def states() -> set[str]:
        with target.http() as http:
            return {http.get(f"/v1/responses/{name}").json().get("status", "unknown") for name in records(target, "responses")}

    target.eventually(lambda: states() <= {"completed", "incomplete"}, 20)


def test_a_disk_that_is_full_for_a_while_costs_a_batch_nothing(target: Running) -> None:
    client = target.client()
    fields = {str(number): "x" * 500 for number in range(16)}
    batch = client.batches.create(**wanted(batch_file(target, 1, 40), metadata=fields)).id
    target.eventually(lambda: client.batches.retrieve(batch).status == "in_progress")
    target.limit_files(4096)  # room for the answer, none for the record of the batch
    try:
        target.eventually(lambda: any("waits" in line for line in target.lines))
        assert client.batches.retrieve(batch).status == "in_progress"
        assert target.post("/v1/batches", wanted(batch_file(target, 1), metadata=fields)).status_code == 507
    finally:
        target.limit_files(resource.RLIM_INFINITY)
    target.eventually(lambda: client.batches.retrieve(batch).status != "in_progress" and bool(ended(target, batch)))
    whole = client.batches.retrieve(batch)
    assert whole.status == "completed"
    assert whole.output_file_id is not None
    assert [json.loads(line)["custom_id"] for line in client.files.content(whole.output_file_id).text.splitlines()] == ["0"]


def ended(running: Running, batch: str) -> bool:
    return running.client().batches.retrieve(batch).status in ("completed", "failed")


def test_results_without_quota_begin_no_more_of_them() -> None:
    running = launch_server(0.001, max_tenant_files=3)
    try:
        file = batch_file(running, 1, 2)
        for _ in range(2):
            batch = running.client().batches.create(**wanted(file)).id
            running.eventually(lambda batch=batch: ended(running, batch))  # type: ignore[misc]
        refused = running.post("/v1/batches", wanted(file))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    finally:
        running.stop()


LIMITS = FileLimits(1 << 20, 1 << 24, 100)


async def keep(store: FileStore, data: bytes = b"no line\n", **fields: Any) -> StoredFile:
    async with store.begin("") as incoming:
        await incoming.write(data)
        return await incoming.keep(NewFile("f", "batch", "", **fields))


def test_files_that_expire_while_they_are_deleted(tmp_path: Path) -> None:
    async def run() -> None:
        store = FileStore(StateFolder(tmp_path), LIMITS, Scribe())
        for _ in range(3):
            await keep(store, lifetime=0)
        await asyncio.gather(store.sweep(), store.sweep())
        assert store.totals() == (0, 0)

    asyncio.run(run())


def test_ended_batches_are_forgotten_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_desk, "MOST_ENDED", 3)

    def never(*_: object) -> Any:
        raise AssertionError("a file without a good line runs nothing")

    async def run() -> None:
        folder, scribe = StateFolder(tmp_path), Scribe()
        store = FileStore(folder, LIMITS, scribe)
        desk = BatchDesk(folder, store, scribe, never)
        body = BatchRequest(input_file_id=(await keep(store)).id, endpoint="/v1/completions", completion_window="24h")
        names = []
        for _ in range(6):
            names.append((await desk.create(body, "")).shown.id)
            while desk.find(names[-1], "").shown.status != "failed":
                await asyncio.sleep(0.001)
        assert len(desk.of("")) == 4  # the bound, and the one that had not ended when it was last looked at
        assert desk.find(names[-1], "").shown.errors is not None
        assert {path.stem for path in folder.room("batches").iterdir()} == {one.shown.id for one in desk.of("")}

    asyncio.run(run())


def response(number: int, text: str) -> KeptResponse:
    made = ResponseObject(
        id=f"resp-{number}", created_at=int(time.time()), status="completed", background=False, instructions=text,
        max_output_tokens=None, metadata={}, model="m", output=[], parallel_tool_calls=True, previous_response_id=None, store=True,
        temperature=1.0, top_p=1.0, text=TextConfig(format=PlainFormat()), tool_choice="auto", tools=[], top_logprobs=0,
        service_tier="default",
    )  # fmt: skip
    return KeptResponse(made, "", [], [])


def test_kept_responses_have_a_bound_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand small ones are kept, and not a thousand of 8 MiB each."""
    monkeypatch.setattr(response_store, "MOST_BYTES", 100_000)

    async def run() -> None:
        folder, scribe = StateFolder(tmp_path), Scribe()
        store = ResponseStore(folder, scribe)
        for number in range(12):
            await store.keep(response(number, "x" * 20_000))
        kept = {path.stem for path in folder.room("responses").iterdir()}
        assert kept == {f"resp-{number}" for number in range(8, 12)}
        await store.keep(response(99, "x" * 200_000))
        assert {path.stem for path in folder.room("responses").iterdir()} == {"resp-99"}
        assert ResponseStore(folder, scribe).find("resp-99", "").response.instructions == "x" * 200_000

    asyncio.run(run())
