"""Who may go first: priorities, service tiers, what a key caps, and what metrics call whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from conftest import Running, launch_server

from headrace.engine.client import EngineClient
from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.scheduling.settings import SchedulingSettings
from headrace.server.auth import KeyRules
from headrace.server.hub import Hub
from headrace.server.model_names import entries
from headrace.server.model_table import ModelTable
from headrace.server.rate_limits import Claim
from headrace.server.settings import ServerSettings
from headrace.server.tenants import MOST_LABELS, Tenants


@dataclass(frozen=True)
class Wish:
    priority: int | None = None
    service_tier: str | None = None


TENANTS = Tenants({"plain": KeyRules(), "vip": KeyRules(weight=5, max_priority=2, name="vip"), "low": KeyRules(max_priority=-3)})


@pytest.mark.parametrize(
    ("tenant", "wish", "priority", "tier"),
    [
        ("plain", Wish(), 0, None),
        ("plain", Wish(service_tier="auto"), 0, "default"),
        ("plain", Wish(service_tier="flex"), -4, "flex"),
        ("plain", Wish(service_tier="priority"), 0, "default"),
        ("plain", Wish(priority=-8), -8, None),
        ("vip", Wish(service_tier="priority"), 2, "priority"),
        ("vip", Wish(2, "default"), 2, "default"),
        ("low", Wish(), -3, None),
        ("low", Wish(service_tier="flex"), -4, "flex"),
    ],
)
def test_what_a_call_is_served_as(tenant: str, wish: Wish, priority: int, tier: str | None) -> None:
    standing = TENANTS.standing(tenant, wish)
    assert (standing.priority, standing.tier) == (priority, tier)
    assert standing.weight == TENANTS.rules[tenant].weight


def test_without_keys_everybody_may_do_all() -> None:
    standing = Tenants().standing("", Wish(service_tier="priority"))
    assert (standing.priority, standing.tier, standing.label, standing.weight) == (4, "priority", "", 1)
    assert Tenants().standing("", Wish(8)).priority == 8


@pytest.mark.parametrize(
    ("tenant", "wish", "code"),
    [
        ("plain", Wish(1), "permission_denied"),
        ("vip", Wish(3), "permission_denied"),
        ("low", Wish(-2), "permission_denied"),
        ("vip", Wish(1, "flex"), "invalid_value"),
        ("vip", Wish(1, "priority"), "invalid_value"),
    ],
)
def test_what_is_refused(tenant: str, wish: Wish, code: str) -> None:
    with pytest.raises(HeadraceError, match=r"'priority'") as refused:
        TENANTS.standing(tenant, wish)
    assert (refused.value.code, refused.value.param) == (code, "priority")


def test_metrics_have_a_bounded_number_of_names() -> None:
    many = Tenants({f"{number:032x}": KeyRules(name="first" if number == 0 else "") for number in range(1000)})
    labels = [many.label(f"{number:032x}") for number in range(1000)]
    assert labels[0] == "first"
    assert len(set(labels)) <= MOST_LABELS + 1
    assert labels[-1] == many.label("stranger") == "other"
    assert many.label("") == ""


def test_nobody_can_shut_the_door_on_others() -> None:
    """A tenant fills the queue; others still get in, each up to an equal part of it, and the sum stays below twice the limit."""
    options = ServerSettings(max_queue=12)
    models = ModelTable(entries(["one=smollm2", "two=smollm2"]), options, (EngineSettings(), SchedulingSettings()), EngineClient)
    service = Hub(options, models)  # no engine is needed to count

    def enter(tenant: str, sequences: int = 1) -> None:
        held.enter_context(service.admitted(sequences, 1, Claim(tenant)))

    def is_full(tenant: str, sequences: int = 1) -> bool:
        with pytest.raises(HeadraceError) as refused:
            enter(tenant, sequences)
        return refused.value.code == "queue_full"

    with ExitStack() as held:
        for _ in range(12):
            enter("heavy")
        assert is_full("heavy")
        assert is_full("light", 7)
        enter("light", 6)
        assert is_full("light")
        assert is_full("third", 5)
        enter("third", 4)
        assert is_full("third")
        assert service.in_flight == 22
    assert service.in_flight == 0
    with ExitStack() as held:
        enter("", 100)
        assert is_full("")
        enter("light", 6)
    assert not service._weights


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("plain\nvip max_priority=8 weight=2 name=vip\n")
    running = launch_server(0.001, key="plain", api_key_file=str(path))
    yield running
    assert running.stop() == 0


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Go."}], "max_tokens": 3}


@pytest.mark.server
def test_openai_clients_see_the_tier_that_served_them(keyed: Running) -> None:
    for key, expected in (("plain", "default"), ("vip", "priority")):
        with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=key, max_retries=0, timeout=30.0) as client:
            whole = client.chat.completions.create(model="echo", service_tier="priority", **CHAT)
            assert whole.service_tier == expected
            stream = client.chat.completions.create(model="echo", service_tier="flex", stream=True, **CHAT)
            assert {chunk.service_tier for chunk in stream} == {"flex"}
            assert client.chat.completions.create(model="echo", **CHAT).service_tier is None


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "Go."}),
        ("/v1/embeddings", {"input": "Go."}),
        ("/v1/rerank", {"query": "Go.", "documents": ["Gone."]}),
    ],
)
def test_every_endpoint_takes_and_caps_priorities(keyed: Running, path: str, body: dict[str, Any]) -> None:
    with keyed.http() as http:
        for key, extra, status, code in (
            ("vip", {"priority": 8}, 200, None),
            ("plain", {"priority": -8}, 200, None),
            ("plain", {"priority": 1}, 403, "permission_denied"),
            ("vip", {"priority": 9}, 400, "invalid_value"),
            ("vip", {"priority": -9}, 400, "invalid_value"),
            ("vip", {"priority": 1.5}, 400, "invalid_value"),
            ("vip", {"service_tier": "scale"}, 400, "unsupported_parameter"),
            ("vip", {"service_tier": "priority", "priority": 1}, 400, "invalid_value"),
        ):
            answer = http.post(path, json=body | extra, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status, (extra, answer.text)
            if code is not None:
                error = answer.json()["error"]
                assert error["code"] == code
                assert error["param"] == ("service_tier" if code == "unsupported_parameter" else "priority")
        assert http.post(path, json=body | {"service_tier": "auto"}).json()["service_tier"] == "default"
        assert "service_tier" not in http.post(path, json=body).json()


@pytest.mark.server
def test_each_key_has_its_metrics(keyed: Running) -> None:
    before = keyed.metric('headrace_tenant_generated_tokens_total{tenant="vip"}')
    with keyed.http() as http:
        body = {"prompt": [1, 2, 3, 4], "max_tokens": 7}
        assert http.post("/v1/completions", json=body, headers={"authorization": "Bearer vip"}).status_code == 200
    assert keyed.metric('headrace_tenant_generated_tokens_total{tenant="vip"}') == before + 7
    assert keyed.metric('headrace_tenant_prompt_tokens_total{tenant="vip"}') >= 4
    assert keyed.metric('headrace_tenant_requests_total{tenant="vip"}') >= 1
