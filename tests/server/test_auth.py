"""Keys on every route, browser defence, and what the server listens on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Running, launch_server

from headrace.errors import HeadraceError
from headrace.server.auth import KeyRing, KeyRules, is_local, tenant_name
from headrace.server.routes import ENDPOINTS

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("# first\nsecret-one\n\n  secret-two  \n")
    running = launch_server(0.005, key="secret-two", api_key_file=str(path))
    yield running
    assert running.stop() == 0


@pytest.mark.server
def test_every_route_and_method_wants_a_key(locked: Running) -> None:
    paths = [path.replace("{id:path}", "x") for endpoint in ENDPOINTS for path in endpoint.paths]
    paths += [
        "/nope",
        "/docs",
        "/redoc",
        "/v1",
        "/v1/",
        "/%2flivez",
        "/livez/",
        "/LIVEZ",
        "/%6civez/../metrics",
        "/livez/../metrics",
    ]
    with httpx.Client(base_url=locked.url, trust_env=False) as http:
        for path in paths:
            for method in METHODS:
                for headers in (
                    {},
                    {"authorization": "Bearer wrong"},
                    {"authorization": "secret-one"},
                    {"x-api-key": "wrong"},
                ):
                    answer = http.request(method, path, headers=headers)
                    if path == "/livez":
                        assert answer.status_code in (200, 405)
                    else:
                        assert answer.status_code == 401, (method, path, headers)
                        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.server
def test_the_page_of_the_console_is_open_and_nothing_below_it(locked: Running) -> None:
    with httpx.Client(base_url=locked.url, trust_env=False) as http:
        assert http.get("/").status_code == http.get("/console/main.js").status_code == 200
        assert http.post("/").status_code == 405
        for path in ("/console", "/console/", "/console/nope.js", "/console/../metrics", "/console/%2e%2e/metrics"):
            assert http.get(path).status_code == 401, path


@pytest.mark.server
def test_keys_open_the_door(locked: Running) -> None:
    with httpx.Client(base_url=locked.url, trust_env=False) as http:
        for key in ("secret-one", "secret-two"):
            for scheme in ("Bearer", "bearer"):
                assert http.get("/v1/models", headers={"authorization": f"{scheme} {key}"}).status_code == 200
        twice = [("authorization", "Bearer secret-one"), ("authorization", "Bearer secret-one")]
        assert http.get("/v1/models", headers=twice).status_code == 401
        assert http.get("/v1/models", headers=[(b"authorization", "Bearer sécret".encode())]).status_code == 401
    assert locked.client().models.list().data


def test_key_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    bad_rules = (
        "requests_per_minute=0",
        "requests_per_minute=-1",
        "requests_per_minute=1e3",
        "tokens_per_minute",
        "days=3",
        "weight=0",
        "weight=1001",
        "max_priority=9",
        "max_priority=-9",
        "name=",
        "name=a b",
        "name=other",
    )
    too_large = ("requests_per_minute=99999999999", "tokens_per_minute=10000000000")
    texts = [
        "",
        "* name=all\na\n",
        "# only a comment\n",
        "two words\n",
        "k\u00e9y\n",
        "x" * 513,
        "a\na\n",
        "* requests_per_minute=3\n",
    ]
    for text in (*texts, *(f"a {rule}\n" for rule in (*bad_rules, *too_large))):
        file.write_text(text)
        with pytest.raises(HeadraceError) as refused:
            KeyRing.read(str(file))
        assert (refused.value.code, refused.value.param) == ("invalid_setting", "api_key_file")
    with pytest.raises(HeadraceError):
        KeyRing.read(str(tmp_path / "none"))
    file.write_text("a\nb\n")
    ring = KeyRing.read(str(file))
    assert ring.admits("a")
    assert ring.admits("b")
    assert not ring.admits("")
    assert not ring.admits("a" * 600)
    file.write_text("a weight=3 max_priority=-2 name=lab.1\n")
    assert KeyRing.read(str(file)).rules == {tenant_name("a"): KeyRules(weight=3, max_priority=-2, name="lab.1")}
    file.write_text("* requests_per_minute=5\na\nb tokens_per_minute=7 requests_per_minute=9 \n")
    rules = KeyRing.read(str(file)).rules
    assert rules == {tenant_name("a"): KeyRules(5, None), tenant_name("b"): KeyRules(9, 7)}


@pytest.mark.server
def test_web_pages_are_kept_out(echo: Running) -> None:
    with httpx.Client(base_url=echo.url, trust_env=False) as http:
        for headers in (
            {"origin": "https://evil.example"},
            {"host": "evil.example"},
            {"origin": "null"},
            {"host": "evil.example:80"},
        ):
            answer = http.get("/v1/models", headers=headers)
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "permission_denied"
        for headers in ({"origin": "http://localhost:3000"}, {"host": "localhost"}, {"host": "[::1]:80"}):
            answer = http.get("/v1/models", headers=headers)
            assert answer.status_code == 200
            assert not any(name.startswith("access-control") for name in answer.headers)


def test_local_names() -> None:
    assert all(is_local(name) for name in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "a.localhost"))
    assert not any(is_local(name) for name in ("", "localhost.evil.example", "10.0.0.1", "0.0.0.0", "evil"))


def listening(pid: int) -> list[tuple[str, int]]:
    """(hexadecimal address, port) of each TCP socket on which a process listens."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found


@pytest.mark.server
def test_listens_on_one_loopback_socket_only(echo: Running) -> None:
    assert listening(echo.process.pid) == [("0100007F", int(echo.url.rsplit(":", 1)[1]))]
    assert listening(echo.engine_pid()) == []
