"""Adapters over HTTP: loaded, named in requests, replaced, unloaded; and whatever goes wrong, neighbours keep their bits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapter_folders import (
    PROMPT,
    answer,
    broken_empty,
    broken_nan,
    broken_too_large,
    broken_truncated,
    broken_wrong_base,
    broken_wrong_shapes,
    edit,
    load,
    put,
    refusal,
    unload,
)
from conftest import Running, launch_raw, launch_server, wait_ready

from headrace.cli.main import run
from headrace.errors import HeadraceError
from headrace.server.process import check_folders
from headrace.server.settings import ServerSettings

pytestmark = [pytest.mark.server, pytest.mark.model]
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
# Without drafts: an answer that was given before would be over in a few steps.
STREAM: dict[str, Any] = {
    "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "logprobs": 1, "ignore_eos": True, "stream": True,
    "speculation": "off",
}  # fmt: skip


def streamed(running: Running, body: dict[str, Any], begun: threading.Event | None = None) -> list[float]:
    """The log-probabilities of a stream's tokens."""
    found: list[float] = []
    with running.http() as http, http.stream("POST", "/v1/completions", json=body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, line
                parts = [choice["logprobs"] for choice in event["choices"] if choice["logprobs"]]
                found += [value for part in parts for value in part["token_logprobs"]]
                if begun is not None:
                    begun.set()
    return found


@dataclass
class Shop:
    """A server with a folder of adapters, and what its streams answer when they are alone."""

    running: Running
    root: Path
    alone: dict[str, list[float]]

    @contextmanager
    def neighbour(self, model: str = "smollm2") -> Iterator[None]:
        """A stream beside the block; its tokens are those that it has alone."""
        begun = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            stream = pool.submit(streamed, self.running, STREAM | {"model": model}, begun)
            assert begun.wait(30)
            yield
            assert stream.result() == self.alone[model], "the neighbour's numbers have changed"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(("poet", "pirate")):
        put(root / name, number)
    running = launch_server("real", adapter_dir=[str(root)], state_dir=str(tmp_path_factory.mktemp("state")))
    alone = {model: streamed(running, STREAM | {"model": model}) for model in ("smollm2", "poet")}
    assert len(alone["poet"]) == 24
    assert alone["poet"] != alone["smollm2"]
    yield Shop(running, root, alone)
    assert running.stop() == 0, "\n".join(running.lines)


def test_adapters_are_model_names_and_lists_that_are_added_up(shop: Shop) -> None:
    running = shop.running
    plain, poet, pirate = (answer(running, model) for model in ("smollm2", "poet", "pirate"))
    assert len({str(plain), str(poet), str(pirate)}) == 3
    assert answer(running, "smollm2:poet") == poet
    assert answer(running, "smollm2-135m-instruct", adapters=[{"id": "poet"}]) == poet
    assert answer(running, None, adapters=[{"id": "smollm2:poet", "scale": 1}]) == poet
    assert answer(running, None, adapters=[{"id": "poet", "scale": 0.0}])[0] == plain[0]
    both = answer(running, None, adapters=[{"id": "poet"}, {"id": "pirate", "scale": 0.5}])
    assert both not in (plain, poet, pirate)
    assert answer(running, "poet", adapters=[{"id": "pirate", "scale": 0.5}]) == both
    reply = running.post("/v1/completions", {"model": "poet", "prompt": "x", "max_tokens": 1}).json()
    assert reply["model"] == "poet"
    chat = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 8, "temperature": 0}
    said = [running.post("/v1/chat/completions", chat | {"model": model}).json() for model in ("smollm2", "poet")]
    assert said[0]["choices"][0]["message"] != said[1]["choices"][0]["message"]
    vectors = [running.post("/v1/embeddings", {"input": "sea", "model": model}).json() for model in ("smollm2", "poet")]
    assert vectors[0]["data"][0]["embedding"] != vectors[1]["data"][0]["embedding"]
    assert running.post("/v1/tokenize", {"prompt": "sea", "model": "poet"}).status_code == 200


def test_cards(shop: Shop) -> None:
    answer(shop.running, "poet")
    for _ in range(20):  # a quick machine may end the stream before the cards are read
        with shop.neighbour("poet"):
            cards = {card["id"]: card for card in shop.running.get("/v1/models").json()["data"]}
        poet = cards["poet"]
        if poet["in_use"]:
            break
    assert (poet["parent"], poet["root"], poet["rank"], poet["modules"]) == ("smollm2-135m-instruct", "poet", 2, ["q", "down"])
    assert (poet["state"], poet["in_use"], poet["pinned"]) == ("pinned", 1, False)
    assert poet["memory_bytes"] == poet["bytes"] > 0
    assert "generation" not in cards["smollm2-135m-instruct"]
    assert shop.running.get("/v1/models/smollm2:poet").json()["id"] == "poet"
    assert next(model.id for model in shop.running.client().models.list()) == "smollm2-135m-instruct"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "poett"}, (404, "model_not_found", "model", "did you mean 'poet'")),
        ({"model": "smollm2:poett"}, (404, "adapter_not_found", "model", "did you mean 'poet'")),
        ({"adapters": [{"id": "poet"}, {"id": "pirat"}]}, (404, "adapter_not_found", "adapters[1].id", "did you mean 'pirate'")),
        ({"adapters": [{"id": "poet"}, {"id": "smollm2:poet"}]}, (400, "invalid_value", "adapters", "named twice")),
        ({"model": "poet", "adapters": [{"id": "poet"}]}, (400, "invalid_value", "adapters", "named twice")),
        ({"adapters": [{"id": "poet"}] * 9}, (400, "invalid_value", "adapters", "length <= 8")),
        ({"model": "poet", "adapters": [{"id": "pirate"}] * 8}, (400, "invalid_value", "adapters", "at most 8")),
        ({"adapters": [{"id": "poet", "scale": 1001}]}, (400, "invalid_value", "adapters[0].scale", "<= 1000")),
        ({"adapters": [{"id": "poet", "weight": 1}]}, (400, "unknown_parameter", "adapters[0].weight", "Unknown")),
        ({"adapters": "poet"}, (400, "invalid_value", "adapters", "Expected array")),
    ],
)
def test_names_that_mean_nothing(shop: Shop, body: dict[str, Any], expected: tuple[int, str, str, str]) -> None:
    status, code, param, message = refusal(shop.running, "/v1/completions", {"prompt": "x"} | body)
    assert (status, code, param) == expected[:3]
    assert expected[3] in message


def test_a_generation_never_changes_under_a_request(shop: Shop) -> None:
    put(shop.root.parent / "one", 7)  # made elsewhere and moved in, as one should
    (shop.root.parent / "one").rename(shop.root / ".one")
    first = load(shop.running, "muse", ".one")
    muse = answer(shop.running, "muse")
    shop.alone["muse"] = streamed(shop.running, STREAM | {"model": "muse"})
    with shop.neighbour("muse"), shop.neighbour():
        second = load(shop.running, "muse", "poet", expected_generation=first["generation"])
        assert second["generation"] > first["generation"]
        assert answer(shop.running, "muse") == answer(shop.running, "poet")
        assert unload(shop.running, "muse")["state"] == "removed"
        assert refusal(shop.running, "/v1/completions", {"model": "muse", "prompt": "x"})[:2] == (404, "model_not_found")
    assert load(shop.running, "muse", str(shop.root / ".one"), pin=True)["pinned"]
    shop.running.eventually(lambda: shop.running.get("/v1/models/muse").json()["state"] == "pinned")
    assert answer(shop.running, "muse") == muse
    unload(shop.running, "muse")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken_wrong_base, "made for another base model (somebody/larger)"),
        (broken_wrong_shapes, "has shape [2, 576], this model and adapter_config.json ask for [3, 576]"),
        (broken_nan, "infinite or not a number"),
        (broken_truncated, "offsets"),
        (broken_too_large, "the pool has 728"),
        (broken_empty, "holds no adapter"),
    ],
)
def test_broken_adapters_are_refused_when_they_are_loaded(
    shop: Shop, make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    hidden = shop.root / ".bad"  # a name that the watch leaves out
    (tmp_path / "bad").rename(hidden)
    try:
        with shop.neighbour():
            status, code, param, said = refusal(shop.running, LOAD, {"lora_name": "bad", "lora_path": ".bad"})
            assert refusal(shop.running, "/v1/completions", {"model": "bad", "prompt": "x"})[0] == 404
        assert (status, param) == (400, "lora_path")
        assert code in ("model_file", "invalid_value")
        assert message in said
        assert str(shop.root) not in said
    finally:
        shutil.rmtree(hidden)


def test_paths_outside_of_the_roots_are_refused_alike_whether_they_exist_or_not(shop: Shop, tmp_path: Path) -> None:
    put(tmp_path / "outside", 1)
    (shop.root / ".link").symlink_to(tmp_path / "outside")
    (shop.root / ".half").mkdir()
    shutil.copy(tmp_path / "outside" / "adapter_config.json", shop.root / ".half")
    (shop.root / ".half" / "adapter_model.safetensors").symlink_to(tmp_path / "outside" / "adapter_model.safetensors")
    (shop.root / ".loop").symlink_to(shop.root / ".loop")
    outside = [
        str(tmp_path / "outside"),
        "../../../../etc",
        "/etc",
        "/no/such/folder",
        ".link",
        ".half",
        f"poet/../../{tmp_path.name}",
    ]
    with shop.neighbour():
        for path in outside:
            status, code, param, message = refusal(shop.running, LOAD, {"lora_name": "spy", "lora_path": path})
            assert (status, code, param) == (403, "permission_denied", "lora_path"), path
            assert str(tmp_path) not in message
        for path in ("no-such-folder", ".loop", "a\0b", "x" * 300):
            status, code, param, _ = refusal(shop.running, LOAD, {"lora_name": "spy", "lora_path": path})
            assert (status in (400, 403), param) == (True, "lora_path"), path


def test_a_server_without_roots_says_how_to_allow_it(echo: Running) -> None:
    status, code, _, message = refusal(echo, LOAD, {"lora_name": "spy", "lora_path": "/etc"})
    assert (status, code) == (403, "permission_denied")
    assert "--adapter-dir" in message
    assert refusal(echo, UNLOAD, {"lora_name": "spy"})[:3] == (404, "adapter_not_found", "lora_name")


def test_names_and_generations_that_conflict(shop: Shop) -> None:
    with shop.neighbour():
        present = shop.running.get("/v1/models/poet").json()["generation"]
        body = {"lora_name": "poet", "lora_path": "pirate"}
        for more in ({}, {"expected_generation": 0}, {"expected_generation": present + 1}):
            status, code, _, message = refusal(shop.running, LOAD, body | more)
            assert (status, code) == (409, "adapter_conflict")
            assert f"generation {present}" in message
        other = {"lora_name": "poet", "expected_generation": present + 1}
        assert refusal(shop.running, UNLOAD, other)[:3] == (409, "adapter_conflict", "expected_generation")
        assert refusal(shop.running, LOAD, body | {"lora_name": "new", "expected_generation": 3})[0] == 409
        assert refusal(shop.running, UNLOAD, {"lora_name": "nobody"})[:3] == (404, "adapter_not_found", "lora_name")
        assert refusal(shop.running, LOAD, body | {"model": "other"})[:3] == (404, "model_not_found", "model")
    assert shop.running.get("/v1/models/poet").json()["generation"] == present


@pytest.mark.parametrize(
    "name", ["", "a b", "../up", "a/b", "ünï", "a\nb", "-x", "\u202eevil", "a" * 129, "a" * 5000, "smollm2", "smollm2:x"]
)
def test_odd_names_are_refused(shop: Shop, name: str) -> None:
    status, code, param, _ = refusal(shop.running, LOAD, {"lora_name": name, "lora_path": "poet"})
    assert (status, code, param) == (400, "invalid_value", "lora_name")


def test_two_loads_of_one_name_at_once_give_one_adapter(shop: Shop) -> None:
    body = {"lora_name": "twin", "lora_path": "poet"}
    with shop.neighbour(), ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(lambda _: shop.running.post(LOAD, body).status_code, range(4)))
    assert statuses == [200, 409, 409, 409]
    unload(shop.running, "twin")


def test_watched_folders_come_change_and_go(shop: Shop, tmp_path: Path) -> None:
    running, root = shop.running, shop.root

    def card(name: str) -> dict[str, Any]:
        found: dict[str, Any] = running.get(f"/v1/models/{name}").json()
        return found

    with shop.neighbour():
        put(tmp_path / "bard", 11)
        half = root / "half"
        half.mkdir()
        shutil.copy(tmp_path / "bard" / "adapter_config.json", half)  # its weights come later
        (tmp_path / "bard").rename(root / "bard")
        broken_truncated(tmp_path)
        (tmp_path / "bad").rename(root / "bad")
        running.eventually(lambda: card("bard").get("state") == "registered")
        running.eventually(lambda: card("bad").get("state") == "failed")
    assert refusal(running, "/v1/completions", {"model": "bad", "prompt": "x"})[:2] == (400, "model_file")
    before, first = answer(running, "bard"), card("bard")["generation"]
    edit(root / "bard", lora_alpha=0.08)
    shutil.copy(root / "poet" / "adapter_model.safetensors", half)
    shutil.copy(root / "poet" / "adapter_config.json", half)
    shutil.copy(root / "poet" / "adapter_model.safetensors", root / "bad")
    running.eventually(lambda: card("bard")["generation"] > first)
    running.eventually(lambda: card("half").get("state") == "registered")
    running.eventually(lambda: card("bad")["error"] is None)
    assert answer(running, "bard") != before
    assert answer(running, "half") == answer(running, "bad") == answer(running, "poet")
    unload(running, "half")
    for name in ("bard", "bad"):
        shutil.rmtree(root / name)
    running.eventually(lambda: running.get("/v1/models/bard").status_code == 404)
    assert running.get("/v1/models/half").status_code == 404, "what was unloaded stays out until it changes"
    assert sum("'bad' can't be served" in line for line in running.lines) == 1
    shutil.rmtree(half)


def test_a_caller_who_hangs_up_leaves_nothing_half_done(shop: Shop) -> None:
    with shop.neighbour():
        for number in range(8):
            with contextlib.suppress(httpx.TimeoutException), shop.running.http() as http:
                http.post(LOAD, json={"lora_name": f"gone{number}", "lora_path": "poet"}, timeout=0.002 * (number + 1))

    def known() -> set[str]:
        return {card["id"] for card in shop.running.get("/v1/models").json()["data"] if card["parent"]}

    shop.running.eventually(lambda: len(known()) == shop.running.metric("headrace_adapters_registered"))
    for name in known() - {"poet", "pirate"}:
        unload(shop.running, name)
    shop.running.eventually(lambda: len(known()) == shop.running.metric("headrace_adapters_registered") == 2)


def test_lines_of_a_batch_have_adapters_as_well(shop: Shop) -> None:
    running, client = shop.running, shop.running.client()
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 2, "ignore_eos": True}
    bodies = [body | {"model": "poet"}, body | {"adapters": [{"id": "pirate"}]}, body | {"model": "nobody"}]
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": one} for number, one in enumerate(bodies)
    ]
    file = client.files.create(file=("lines.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    running.eventually(lambda: client.batches.retrieve(batch.id).status == "completed", 30)
    found = client.batches.retrieve(batch.id)
    assert found.output_file_id is not None
    answers = {}
    for text in client.files.content(found.output_file_id).text.splitlines():
        entry = json.loads(text)
        choice = entry["response"]["body"]["choices"][0]
        answers[entry["custom_id"]] = choice["text"], choice["logprobs"]["token_logprobs"]
    assert answers == {"0": answer(running, "poet"), "1": answer(running, "pirate")}


def test_use_is_counted_by_adapter(shop: Shop) -> None:
    def counted(what: str, name: str = "poet") -> float:
        return shop.running.metric(f'headrace_adapter_{what}_total{{adapter="{name}",model="smollm2-135m-instruct"}}')

    shop.running.post("/v1/completions", {"model": "poet", "prompt": "x", "max_tokens": 1})
    names = ("requests", "prompt_tokens", "generated_tokens")
    before = [counted(name) for name in names]
    shop.running.post("/v1/completions", {"model": "poet", "prompt": [1, 2, 3], "max_tokens": 5, "ignore_eos": True})
    shop.running.post("/v1/embeddings", {"model": "poet", "input": [1, 2]})
    assert [counted(name) - old for name, old in zip(names, before, strict=True)] == [2, 5, 5]


def test_the_command_line(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    def headrace(*words: str) -> tuple[int, str]:
        code = run(["adapters", *words, "--url", shop.running.url])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    code, listed = headrace("list")
    assert code == 0
    assert next(line.split()[:2] for line in listed.splitlines() if line.startswith("poet ")) == ["poet", "smollm2-135m-instruct"]
    code, added = headrace("add", "sonnet", str(shop.root / "poet"), "--pin")
    assert (code, "q down" in added, "2" in added) == (0, True, True)
    generation = str(shop.running.get("/v1/models/sonnet").json()["generation"])
    code, refused = headrace("add", "sonnet", "pirate")
    assert (code, f"generation {generation}" in refused) == (2, True)
    assert headrace("add", "sonnet", "pirate", "--replace", generation)[0] == 0
    assert headrace("show", "smollm2:sonnet")[1].count("pirate") == 1
    assert headrace("remove", "sonnet", "--generation", generation)[0] == 2, "another generation has the name"
    code, removed = headrace("remove", "sonnet")
    assert (code, "no longer served" in removed) == (0, True)
    assert headrace("show", "sonnet")[0] == headrace("show", "smollm2")[0] == headrace("remove", "sonnet")[0] == 2
    assert run(["ps", "--url", shop.running.url]) == 0
    assert "poet" not in capsys.readouterr().out
    assert run(["adapters", "list", "--url", "http://127.0.0.1:1"]) == 2


def test_adapters_outlive_their_models_engine(tmp_path: Path) -> None:
    put(tmp_path / "poet", 0)
    running = wait_ready(launch_raw("real", {"adapter_dir": [str(tmp_path)], "restart_delay": 0.01}, "one=smollm2,two=smollm2"))
    try:
        assert running.get("/v1/models/poet").json()["state"] == "waiting", "no model is fetched for a folder"
        load(running, "mine", "poet", model="two")
        poet = answer(running, "two:mine")
        generation = running.get("/v1/models/two:mine").json()["generation"]
        running.post("/v1/models/unload", {"model": "two"})
        assert running.get("/v1/models/mine").json()["state"] == "waiting"
        assert answer(running, "mine") == poet
        os.kill(running.engine_pid(), signal.SIGKILL)
        running.eventually(lambda: running.metric('headrace_model_crashes_total{model="two"}') == 1)
        running.eventually(lambda: running.get("/v1/models/mine").json()["state"] == "registered")
        assert answer(running, "mine") == poet
        assert running.get("/v1/models/mine").json()["generation"] == generation
        (tmp_path / "poet").rename(tmp_path / "gone")
        running.post("/v1/models/unload", {"model": "two"})
        status, code, _, message = refusal(running, "/v1/completions", {"model": "mine", "prompt": "x"})
        assert (status, code) == (400, "model_file")
        assert "has changed since it was loaded" in message
    finally:
        assert running.stop() == 0, "\n".join(running.lines)


def test_a_root_that_is_no_folder_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="is no folder"):
        check_folders(ServerSettings(adapter_dir=(str(tmp_path / "none"),)))
