"""Several models in one server: routing, coming and going, memory, crashes, and the same bits as alone."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Running, launch_raw, wait_ready

from headrace.cli.main import run

pytestmark = [pytest.mark.server, pytest.mark.model]
TWO = "one=smollm2,two=smollm2"
MakeServer = Callable[..., Running]


@pytest.fixture
def serving() -> Iterator[MakeServer]:
    """Makes servers of several models over the echo engine (seconds a token), or the real one."""
    made: list[Running] = []

    def make(models: str = TWO, engine: str | float = 0.005, **options: Any) -> Running:
        made.append(wait_ready(launch_raw(str(engine), options, models)))
        return made[-1]

    yield make
    for running in made:
        running.stop()


def ask(running: Running, model: str | None, **more: Any) -> httpx.Response:
    body = {"prompt": "one two three", "max_tokens": 3, **({"model": model} if model else {}), **more}
    return running.post("/v1/completions", body)


def card(running: Running, model: str) -> dict[str, Any]:
    found = running.get(f"/v1/models/{model}").json()
    assert isinstance(found, dict)
    return found


def state(running: Running, model: str) -> str:
    return str(card(running, model)["state"])


def count(running: Running, what: str, model: str) -> float:
    return running.metric(f'headrace_model_{what}{{model="{model}"}}')


def engines(running: Running) -> list[int]:
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
    return [int(child) for child in children if "echo_engine" in Path(f"/proc/{child}/cmdline").read_text()]


def test_models_come_when_they_are_wanted_and_go_when_they_are_told_to(serving: MakeServer) -> None:
    running = serving()
    assert any("all fit together" in line for line in running.lines)
    assert [model["state"] for model in running.get("/v1/models").json()["data"]] == ["cold", "cold"]
    missing = ask(running, "three")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert "'one', 'two'" in missing.json()["error"]["message"]
    assert ask(running, "two").json()["model"] == "two"
    assert (state(running, "one"), state(running, "two")) == ("cold", "hot")
    tokenizers = 'headrace_process_memory_bytes{process="tokenizer"}'
    assert running.metric(tokenizers) > 0, "made apart: streams of other models go on while one is loaded"
    assert ask(running, None).json()["model"] == "one", "the first model answers when none is named"
    assert card(running, "two")["memory_bytes"] > 0
    with ThreadPoolExecutor(8) as pool:
        gone = running.post("/v1/models/unload", {"model": "two"}).json()
        answers = list(pool.map(lambda _: ask(running, "two"), range(8)))
    assert (gone["state"], gone["memory_bytes"]) == ("cold", 0)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert (count(running, "loads_total", "two"), count(running, "unloads_total", "two")) == (2, 1), "eight asked, one load"
    assert running.metric('headrace_model_state{model="two",state="hot"}') == 1
    assert running.post("/models/load", {"model": "one"}).json()["state"] == "hot"
    assert running.post("/v1/models/unload", {"model": "three"}).status_code == 404
    assert running.post("/v1/models/unload", {"model": "one", "force": True}).json()["error"]["code"] == "unknown_parameter"
    assert running.stop() == 0


def test_ps_shows_a_running_server(serving: MakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    running = serving(pin=["two"])
    assert run(["ps", "--url", running.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [("one" in line, "two" in line, "hot, pinned" in line) for line in lines if "smollm2" in line] == [
        (True, False, False),
        (False, True, True),
    ]
    assert run(["ps", "--url", running.url.rsplit(":", 1)[0] + ":1"]) == 2
    assert run(["ps", "--url", "file:///etc/passwd"]) == 2


def test_who_streams_is_not_cut_off_and_who_comes_meanwhile_waits(serving: MakeServer) -> None:
    running = serving(engine=0.02)
    ask(running, "one")
    ask(running, "two")
    with ThreadPoolExecutor(3) as pool:
        stream = {"model": "one", "prompt": "one two", "max_tokens": 150, "stream": True}
        with running.http() as http, http.stream("POST", "/v1/completions", json=stream) as answer:
            lines = answer.iter_lines()
            next(lines)
            unloading = pool.submit(running.post, "/v1/models/unload", {"model": "one"})
            running.eventually(lambda: state(running, "one") == "leaving")
            late = pool.submit(ask, running, "one")
            running.eventually(lambda: count(running, "waiting", "one") == 1)
            assert ask(running, "two").status_code == 200, "the neighbour notices nothing"
            assert not unloading.done()
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert json.loads(rest[-4][6:])["choices"][0]["finish_reason"] == "length"
        assert unloading.result().status_code == 200
        assert late.result().status_code == 200
    assert count(running, "loads_total", "one") == 2


def test_idle_models_leave_after_their_time_and_pinned_ones_stay(serving: MakeServer) -> None:
    running = serving(unload_after=1.5, pin=["one"])
    assert (state(running, "one"), card(running, "one")["pinned"]) == ("hot", True)
    for _ in range(3):
        assert ask(running, "two").status_code == 200
        time.sleep(0.7)
    assert count(running, "loads_total", "two") == 1, "each request begins the time anew"
    running.eventually(lambda: state(running, "two") == "cold")
    assert ask(running, "two", keep_alive=-1).status_code == 200
    time.sleep(1.7)
    assert state(running, "two") == "hot", "the request's own word counts until the next one"
    assert ask(running, "two", keep_alive=0).status_code == 200
    running.eventually(lambda: state(running, "two") == "cold")
    assert ask(running, "one", keep_alive=0).status_code == 200
    time.sleep(0.2)
    assert state(running, "one") == "hot"
    with ThreadPoolExecutor(4) as pool:  # requests that meet a model on its way out
        answers = list(pool.map(lambda number: ask(running, "two", keep_alive=0).status_code, range(40)))
    assert answers == [200] * 40


def test_a_model_that_does_not_fit_sends_idle_ones_away_and_one_that_never_fits_is_refused(serving: MakeServer) -> None:
    need = 94 + 192 + 128  # weights, process, and half of a pool of 256 MiB
    running = serving(memory_mib=need + 50)
    assert ask(running, "one").status_code == 200
    assert ask(running, "two").status_code == 200
    assert (state(running, "one"), state(running, "two")) == ("cold", "hot")
    assert any("one must leave" in line for line in running.lines)
    with ThreadPoolExecutor(4) as pool:  # both at once: they take turns and everybody is served
        answers = [pool.submit(ask, running, name) for name in ("one", "two") * 3]
    assert [answer.result().status_code for answer in answers] == [200] * 6
    running.stop()
    small = serving("one=smollm2,two=gemma-3-270m", memory_mib=94 + 192 + 61 + 50)  # pages in proportion to 8 full contexts
    assert ask(small, "one").status_code == 200
    refused = ask(small, "two")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_failed")
    assert "MiB" in refused.json()["error"]["message"]
    assert state(small, "one") == "hot", "nobody leaves for one that never fits"
    assert "MiB" in card(small, "two")["error"]


def test_a_crash_is_the_model_s_own_affair(serving: MakeServer) -> None:
    running = serving(engine=0.02, restart_delay=0.2)
    ask(running, "one")
    (first,) = engines(running)
    ask(running, "two")
    long = {"prompt": "one two three", "max_tokens": 80, "stream": True}
    with ThreadPoolExecutor(1) as pool, running.http() as http:
        neighbour = pool.submit(ask, running, "two", max_tokens=80)
        with http.stream("POST", "/v1/completions", json={**long, "model": "one"}) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(first, signal.SIGKILL)
            rest = list(lines)
        assert json.loads(rest[-4][6:])["error"]["code"] == "engine_dead"
        assert ask(running, "one").status_code == 200, "waits until it is back"
        assert neighbour.result().status_code == 200
    assert (count(running, "crashes_total", "one"), count(running, "loads_total", "one")) == (1, 2)
    assert count(running, "crashes_total", "two") == 0
    assert running.get("/readyz").status_code == 200


def test_a_damaged_model_fails_alone_and_serves_when_it_is_mended(serving: MakeServer, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    running = serving(f"one=smollm2,{damaged}", pin=["damaged"])
    assert (state(running, "damaged"), bool(card(running, "damaged")["error"])) == ("failed", True)
    assert ask(running, "damaged").json()["error"]["code"] == "model_failed"
    assert ask(running, "one").status_code == 200
    assert running.metric('headrace_model_failures_total{model="damaged"}') >= 1


def test_shutdown_while_loading_and_while_others_wait(serving: MakeServer) -> None:
    running = serving(engine=0.02)
    codes: list[int] = []
    asking = threading.Thread(target=lambda: codes.append(ask(running, "two").status_code))
    asking.start()
    running.eventually(lambda: state(running, "two") in ("loading", "hot"))
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0
    asking.join()
    assert codes in ([200], [503])


def test_too_many_waiters_and_impatient_ones(serving: MakeServer) -> None:
    running = serving(max_queue=2, load_timeout=0.1, engine=0.01)
    first = ask(running, "two")  # half a second at least
    assert (first.status_code, first.json()["error"]["code"]) == (503, "loading")
    assert first.headers["retry-after"]
    running.eventually(lambda: state(running, "two") == "hot")
    assert count(running, "waiting", "two") == 0
    assert ask(running, "two").status_code == 200


def test_the_same_bits_as_alone_and_both_get_on(real: Running, serving: MakeServer) -> None:
    asked = {"temperature": 0.8, "seed": 7, "max_tokens": 24, "logprobs": 2, "prompt": "The water runs down", "ignore_eos": True}
    names = ("smollm2", "gemma-3-270m")
    alone = {"smollm2": real.post("/v1/completions", asked).json()["choices"]}
    gemma = serving("gemma-3-270m", "real")
    alone["gemma-3-270m"] = gemma.post("/v1/completions", asked).json()["choices"]
    assert gemma.stop() == 0
    both = serving(",".join(names), "real")
    with ThreadPoolExecutor(6) as pool:
        answers = [(name, pool.submit(both.post, "/v1/completions", {**asked, "model": name})) for name in names * 3]
    for name, answer in answers:
        assert answer.result().json()["choices"] == alone[name]
    assert all(count(both, "generated_tokens_total", card(both, name)["id"]) >= 72 for name in names)


def test_what_one_model_does_not_use_another_can_take_and_gives_back(real: Running, serving: MakeServer) -> None:
    asked = {
        "prompt": "A list of rivers:",
        "n": 4,
        "max_tokens": 120,
        "temperature": 0.7,
        "seed": 3,
        "logprobs": 1,
        "ignore_eos": True,
    }
    plenty = real.post("/v1/completions", asked).json()["choices"]
    running = serving(TWO, "real", pool_mib=12)  # 34 pages of 16 tokens; the choices need 32
    for name in ("one", "two"):
        assert running.post("/v1/models/load", {"model": name}).status_code == 200

    def pages(name: str) -> float:
        return count(running, "pages_total", name)

    running.eventually(lambda: pages("one") == pages("two") == 17)
    for name, other in (("one", "two"), ("two", "one")):
        assert running.post("/v1/completions", {**asked, "model": name}).json()["choices"] == plenty
        running.eventually(lambda name=name, other=other: pages(name) > 17 > pages(other) >= 4)  # type: ignore[misc]
        assert pages(name) + pages(other) <= 34
