"""Files over the wire: the openai client's life of a file, limits, owners, and what crashes and full disks leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import HERE, Running, launch, launch_server, wait_ready

pytestmark = pytest.mark.server
MakeServer = Callable[..., Running]
LINES = b'{"custom_id": "a"}\n'


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with keys and small limits."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("one\ntwo\n")
    running = launch_server(key="one", api_key_file=str(keys), max_file_mib=2, max_tenant_files_mib=4, max_tenant_files=6)
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


@pytest.fixture
def files(keeper: Running) -> Iterator[Any]:
    """The client's files; all are gone before and after."""
    files = keeper.client().files
    yield files
    for file in files.list():
        files.delete(file.id)


def post(running: Running, data: bytes = LINES, **fields: Any) -> httpx.Response:
    with running.http() as http:
        return http.post("/v1/files", files={"file": ("f.jsonl", data)}, data={"purpose": "batch", **fields})


def test_the_life_of_a_file(files: Any) -> None:
    made = files.create(file=("täst ü.jsonl", LINES), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    assert (made.bytes, made.filename, made.purpose, made.object) == (len(LINES), "täst ü.jsonl", "fine-tune", "file")
    assert made.expires_at == made.created_at + 3600
    assert files.retrieve(made.id) == made
    assert files.content(made.id).read() == LINES
    assert files.wait_for_processing(made.id) == made
    gone = files.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    for call in (files.retrieve, files.content, files.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            call(made.id)
        assert refused.value.code == "file_not_found"


def test_lists_go_page_by_page(files: Any) -> None:
    made = [files.create(file=(f"{number}.jsonl", LINES), purpose="batch" if number % 2 else "fine-tune").id for number in range(5)]
    assert {file.id for file in files.list(purpose="batch")} == {made[1], made[3]}
    whole = [file.id for file in files.list(order="asc")]
    assert sorted(whole) == sorted(made)
    assert [file.id for file in files.list(limit=2, order="asc")] == whole  # the client turns the pages
    assert [file.id for file in files.list(limit=2)] == whole[::-1]


def test_other_keys_find_nothing(keeper: Running, files: Any) -> None:
    made = files.create(file=("a.jsonl", LINES), purpose="batch")
    with openai.OpenAI(base_url=f"{keeper.url}/v1", api_key="two", max_retries=0) as other:
        assert list(other.files.list()) == []
        for call in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(made.id)
    assert files.content(made.id).read() == LINES


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"purpose": "vision"}, "purpose", "invalid_value"),
        ({"purpos": "batch"}, "purpos", "unknown_parameter"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after.seconds", "invalid_value"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after.anchor", "invalid_value"),
        ({"purpose": "x" * 2000}, "purpose", "invalid_value"),
    ],
)
def test_wrong_fields(keeper: Running, fields: dict[str, Any], param: str, code: str) -> None:
    error = post(keeper, LINES, **fields).json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_wrong_bodies(keeper: Running) -> None:
    with keeper.http() as http:
        assert http.post("/v1/files", json={"purpose": "batch"}).status_code == 400
        assert http.post("/v1/files", data={"purpose": "batch"}, files={"other": b"x"}).json()["error"]["param"] == "other"
        assert http.post("/v1/files", files={"purpose": (None, "batch")}).json()["error"]["param"] == "file"
        head = {"content-type": "multipart/form-data; boundary=q"}
        cut = b'--q\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
        assert "too soon" in http.post("/v1/files", content=cut, headers=head).json()["error"]["message"]
    assert post(keeper, b"").json()["error"]["param"] == "file"
    for query, param in (("?limit=0", "limit"), ("?limt=3", "limt"), ("?limit=1&limit=2", "limit"), ("?after=nobody", "after")):
        assert keeper.get(f"/v1/files{query}").json()["error"]["param"] == param
    assert left(keeper) == []


@pytest.mark.parametrize(
    "fields",
    [
        [("expires_after", "1"), ("expires_after[seconds]", "3600")],
        [("expires_after[seconds]", "3600"), ("expires_after", "1")],
    ],
)
def test_a_field_is_whole_or_in_parts(keeper: Running, fields: list[tuple[str, str]]) -> None:
    assert post(keeper, LINES, **dict(fields)).json()["error"]["param"] == "expires_after"
    assert left(keeper) == []


def left(running: Running) -> list[str]:
    """Names of all bytes that the server keeps."""
    assert running.scratch is not None
    return [path.name for room in ("files", "incoming", "file_records") for path in (Path(running.scratch) / room).iterdir()]


def test_limits_leave_nothing_behind(keeper: Running, files: Any) -> None:
    with pytest.raises(openai.APIStatusError) as large:
        files.create(file=("a", b"x" * (3 << 20)), purpose="batch")
    assert large.value.status_code == 413
    unknown_size = iter([b"--q\r\n", b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n', *[b"x" * (1 << 20)] * 3])
    with keeper.http() as http:
        answer = http.post("/v1/files", content=unknown_size, headers={"content-type": "multipart/form-data; boundary=q"})
    assert answer.status_code == 413
    assert left(keeper) == []
    for _ in range(2):
        files.create(file=("a", b"x" * (3 << 19)), purpose="batch")
    with pytest.raises(openai.RateLimitError) as much:
        files.create(file=("a", b"x" * (3 << 19)), purpose="batch")
    assert much.value.code == "quota_exceeded"
    assert much.value.response.headers["x-should-retry"] == "false"
    for _ in range(4):
        files.create(file=("a", b"x"), purpose="batch")
    with pytest.raises(openai.RateLimitError):
        files.create(file=("a", b"x"), purpose="batch")
    assert len(left(keeper)) == 12


def test_names_are_never_paths(keeper: Running, files: Any) -> None:
    assert keeper.scratch is not None
    made = files.create(file=("../../../etc/passwd", LINES), purpose="batch")
    assert made.filename == "passwd"
    for name in ("..%2Flock", "%2E%2E%2Flock", "lock", "file-" + "0" * 32, "x" * 5000, "%00"):
        for suffix in ("", "/content"):
            assert keeper.get(f"/v1/files/{name}{suffix}").status_code == 404
    assert (Path(keeper.scratch) / "lock").exists()


def test_a_client_that_leaves_leaves_nothing(keeper: Running) -> None:
    host, port = keeper.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        head = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer one\r\ncontent-length: 100000\r\n"
        body = '--q\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + "x" * 5000
        sock.sendall(f"{head}content-type: multipart/form-data; boundary=q\r\n\r\n{body}".encode())
        keeper.eventually(lambda: len(left(keeper)) == 1)
    keeper.eventually(lambda: left(keeper) == [])


def test_changed_bytes_are_noticed(keeper: Running, files: Any) -> None:
    made = files.create(file=("a", LINES), purpose="batch")
    assert keeper.scratch is not None
    (Path(keeper.scratch) / "files" / made.id).write_bytes(LINES[::-1])
    answer = keeper.get(f"/v1/files/{made.id}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "file_damaged")


def test_files_survive_kill_9(own: MakeServer, tmp_path: Path) -> None:
    running = own(state_dir=str(tmp_path / "state"))
    kept = running.client().files.create(file=("a", LINES), purpose="batch")
    running.process.send_signal(signal.SIGKILL)
    running.process.wait()
    (tmp_path / "state" / "incoming" / "upload-half").write_bytes(b"half")
    (tmp_path / "state" / "files" / "file-orphan").write_bytes(b"orphan")
    (tmp_path / "state" / "file_records" / ".x.json.new").write_bytes(b"{")
    (tmp_path / "state" / "file_records" / "file-bad.json").write_bytes(b"{")
    again = own(state_dir=str(tmp_path / "state"))
    assert list(again.client().files.list()) == [kept]
    assert again.client().files.content(kept.id).read() == LINES
    names = sorted(path.name for room in ("files", "incoming", "file_records") for path in (tmp_path / "state" / room).iterdir())
    assert names == sorted([kept.id, f"{kept.id}.json", "file-bad.damaged"])
    second = subprocess.run(
        [sys.executable, "-m", "headrace", "serve", "--port", "0", "--state-dir", str(tmp_path / "state")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 2
    assert "in use by another server" in second.stderr


def test_a_full_disk_is_one_clear_refusal(tmp_path: Path) -> None:
    """The system refuses to let the server's files grow, as it does on a full disk."""
    options = f'{{"port": 0, "state_dir": "{tmp_path}"}}'
    limit = (
        "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", limit, sys.executable, str(HERE / "run_server.py"), "0.005", options]
    running = wait_ready(launch(command))
    try:
        with pytest.raises(openai.APIStatusError) as refused:
            running.client().files.create(file=("a", os.urandom(3 << 20)), purpose="batch")
        assert (refused.value.status_code, refused.value.code) == (507, "storage_full")
        assert not list((tmp_path / "incoming").iterdir())
        assert not list((tmp_path / "files").iterdir())
        assert running.post("/v1/completions", {"prompt": "a b", "max_tokens": 2}).status_code == 200
        made = running.client().files.create(file=("a", LINES), purpose="batch")
        assert running.client().files.content(made.id).read() == LINES
    finally:
        assert running.stop() == 0
