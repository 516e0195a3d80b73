"""Clients that others wrote, unchanged, against the real server; one that is not installed (extra `clients`) is skipped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
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


TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_scores_choices_with_the_tokenizer_over_http(real: Running, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    cities = [" Paris", " Rome", " Berlin"]
    lines = [
        {"question": f"The capital of {country} is", "choices": cities, "answer": answer}
        for answer, country in enumerate(("France", "Italy", "Germany"))
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "capitals.yaml").write_text(TASK.format(file=questions), encoding="utf-8")
    served = f"model={MODEL},base_url={real.url}/v1/completions,tokenizer_backend=remote,max_retries=1"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", served]
    command += ["--include_path", str(tmp_path), "--tasks", "capitals", "--output_path", str(tmp_path / "out")]
    alone = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, timeout=240, capture_output=True, env=alone)
    (result,) = (tmp_path / "out").rglob("results*.json")
    assert json.loads(result.read_text(encoding="utf-8"))["results"]["capitals"]["acc,none"] == 1.0


@pytest.mark.filterwarnings("ignore")
def test_guidellm_measures_without_an_error(real: Running, tmp_path: Path) -> None:
    pytest.importorskip("guidellm", reason="guidellm is not installed")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"Name {number} rivers."}) for number in range(3)), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--profile", "kind=concurrent,streams=2"]
    command += ["--backend", f'kind=openai_http,target={real.url},model={MODEL},extras={{"body":{{"max_tokens":8}}}}']
    command += ["--constraint", "kind=max_requests,count=3", "--data", f"kind=json_file,path={prompts}"]
    command += ["--disable-progress", "--output", f"kind=json,path={tmp_path / 'out.json'}"]
    alone = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, timeout=240, capture_output=True, env=alone)
    counted = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["benchmarks"][0]["metrics"]["request_totals"]
    assert (counted["successful"], counted["errored"]) == (3, 0)


@pytest.mark.filterwarnings("ignore")
def test_cohere_reranks_with_both_its_clients(real: Running) -> None:
    cohere = pytest.importorskip("cohere")
    documents = ["Shoes can be sent back.", "Air scatters short wavelengths of sunlight more than long ones."]
    for kind in (cohere.ClientV2, cohere.Client):
        with kind("none", base_url=real.url) as client:
            answer = client.rerank(model="smollm2", query="why is the sky blue", documents=documents, top_n=1)
        assert [one.index for one in answer.results] == [1]
        assert 0 < answer.results[0].relevance_score < 1
