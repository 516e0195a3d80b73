"""Whose pages a request may find: those of its own key's requests, and nobody can see any others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Running, launch_server

from headrace.server.auth import tenant_of

WORDS = "The mill by the river grinds the corn of the whole valley, and its wheel has turned since the old king's days. "


def test_each_key_is_a_tenant_that_does_not_tell_the_key() -> None:
    names = {tenant_of([(b"authorization", f"Bearer {key}".encode())]) for key in ("one", "two", "One", "one-")}
    assert len(names) == 4
    assert tenant_of([(b"authorization", b"Bearer one")]) == tenant_of([(b"authorization", b"bearer  one")])
    assert all(len(name) == 32 and "one" not in name for name in names)
    assert tenant_of([]) == ""


@pytest.fixture(scope="module")
def two_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("key-one\nkey-two\n")
    running = launch_server("real", key="key-one", api_key_file=str(path))
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


def cached(running: Running, key: str, path: str, body: dict[str, Any]) -> int:
    with running.http() as http:
        answer = http.post(path, json={"max_tokens": 2, **body}, headers={"authorization": f"Bearer {key}"}).json()
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


@pytest.mark.server
@pytest.mark.model
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": WORDS}]}),
        ("/v1/completions", {"prompt": WORDS * 2}),
    ],
)
def test_another_key_never_finds_a_prompt(two_keys: Running, path: str, body: dict[str, Any]) -> None:
    assert cached(two_keys, "key-one", path, body) == 0
    found = cached(two_keys, "key-one", path, body)
    assert found >= 32
    assert found % 16 == 0
    assert cached(two_keys, "key-two", path, body) == 0
    assert cached(two_keys, "key-two", path, body) == found
    assert two_keys.metric("headrace_prefix_found_tokens_total") >= 2 * found
    assert two_keys.metric("headrace_cached_prompt_tokens_total") >= 2 * found
    assert two_keys.metric("headrace_pages_cached") > 0


@pytest.mark.server
@pytest.mark.model
def test_pages_of_an_embedding_are_its_tenants_own(two_keys: Running) -> None:
    text = "Nobody else may know that this was embedded here. " * 4
    with two_keys.http() as http:
        assert http.post("/v1/embeddings", json={"input": text}).status_code == 200
    assert cached(two_keys, "key-two", "/v1/completions", {"prompt": text}) == 0
    assert cached(two_keys, "key-one", "/v1/completions", {"prompt": text}) >= 32
