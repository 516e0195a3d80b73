"""Clients that others wrote, unchanged, against the real server; one that is not installed (extra `clients`) is skipped."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import Running
from prometheus_client.parser import text_string_to_metric_families

MODEL = "smollm2-135m-instruct"
pytestmark = [pytest.mark.server, pytest.mark.model]


def test_prometheus_reads_every_line(real: Running) -> None:
    real.post("/v1/completions", {"prompt": "A river", "max_tokens": 2})
    page = real.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(page.text))
    assert len({one.name for one in families}) == len(families)
    assert all(one.documentation and one.type != "unknown" for one in families)
    lines = [line for line in page.text.splitlines() if line and not line.startswith("#")]
    assert sum(len(one.samples) for one in families) == len(lines)
    counted = {one.name: one for one in families if one.type == "counter"}
    assert any(sample.value > 0 for sample in counted["headrace_tenant_generated_tokens"].samples)


# Modules of these clients warn about themselves when they are imported; that is not ours to judge.
@pytest.mark.filterwarnings("ignore")
def test_langchain(real: Running) -> None:
    chat_models: Any = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    chat = chat_models.ChatOpenAI(
        model=MODEL, base_url=f"{real.url}/v1", api_key="none", max_tokens=8, temperature=0, max_retries=0
    )
    whole = chat.invoke("Name a river.")
    assert whole.usage_metadata["output_tokens"] == 8
    assert "".join(piece.content for piece in chat.stream("Name a river.")) == whole.content
    shown = chat.bind(logprobs=True, top_logprobs=2).invoke("Name a river.")
    assert len(shown.response_metadata["logprobs"]["content"]) == 8


@pytest.mark.filterwarnings("ignore")
def test_litellm(real: Running) -> None:
    litellm: Any = pytest.importorskip("litellm", reason="litellm is not installed")
    given = {"api_base": f"{real.url}/v1", "api_key": "none", "max_tokens": 8, "temperature": 0}
    messages = [{"role": "user", "content": "Name a river."}]
    whole = litellm.completion(model=f"openai/{MODEL}", messages=messages, **given)
    pieces = litellm.completion(model=f"openai/{MODEL}", messages=messages, stream=True, **given)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    text = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="The capital of France is", **given)
    assert re.search("Paris", text.choices[0].text)
