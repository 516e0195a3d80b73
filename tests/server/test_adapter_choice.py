"""What names mean: which base an adapter's file means, and labels that stay few."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from headrace.engine.client import EngineClient
from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.scheduling.settings import SchedulingSettings
from headrace.server.adapter_choice import base_of, choose
from headrace.server.adapter_metrics import MOST_LABELS, AdapterMetrics
from headrace.server.adapter_table import AdapterTable
from headrace.server.model_names import entries
from headrace.server.model_table import ModelTable
from headrace.server.settings import ServerSettings


def models(*names: str) -> ModelTable:
    return ModelTable(entries(names), ServerSettings(), (EngineSettings(), SchedulingSettings()), EngineClient)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("google/gemma-3-270m", "gemma-3-270m"),
        ("google/gemma-3-270m-it", "gemma-3-270m"),
        ("/home/me/models/Gemma_3_270M", "gemma-3-270m"),
        ("meta-llama/Llama-3", "smollm2-135m-instruct"),
        ("", "smollm2-135m-instruct"),
        ("gem", "smollm2-135m-instruct"),
    ],
)
def test_the_base_that_a_file_names(base: str, expected: str) -> None:
    assert base_of(models("smollm2", "gemma-3-270m"), base).entry.root == expected


def test_names_without_adapters() -> None:
    table = models("a=smollm2", "b=smollm2")
    adapters = AdapterTable(table)
    assert choose(table, adapters, None, ()).model.name == "a"
    assert choose(table, adapters, "b", ()).name == "b"
    with pytest.raises(HeadraceError, match="'a', 'b' are served"):
        choose(table, adapters, "c", ())
    with pytest.raises(HeadraceError, match="No adapter is called 'b:c'"):
        choose(table, adapters, "b:c", ())
    for name in ("a", "b:x"):
        with pytest.raises(HeadraceError, match="call the adapter something else"):
            adapters.check_name(name)


def test_labels_stay_few() -> None:
    registry = CollectorRegistry()
    metrics = AdapterMetrics(registry)
    for number in range(500):
        for counts in metrics.of("m", [f"a{number}", "a0"]):
            counts.requests.inc()
    lines = [line for line in generate_latest(registry).decode().splitlines() if line.startswith("headrace_adapter_requests_total")]
    assert len(lines) == MOST_LABELS + 1
    assert f'headrace_adapter_requests_total{{adapter="(other)",model="m"}} {500 - MOST_LABELS:.1f}' in lines
    assert 'headrace_adapter_requests_total{adapter="a0",model="m"} 501.0' in lines
