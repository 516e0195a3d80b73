"""The measuring of attention itself: what it counts, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.errors import HeadraceError
from headrace.kernels.attention_bench import AttentionCase, measure_attention
from headrace.kernels.interface import kv_head_bytes
from headrace.models.catalog import find_model, open_model
from headrace.models.config import AttentionSpec

_SMALL = AttentionCase(context=70, batch=2, rows=3, layers=2, threads=1, trials=1)


@pytest.fixture(scope="module")
def spec() -> AttentionSpec:
    return open_model(find_model("smollm2-135m-instruct")).config.attention_blocks[0]


def test_bytes_and_products_are_counted(spec: AttentionSpec) -> None:
    found = measure_attention(spec, _SMALL)
    for kv, row in found.items():
        assert row.resident_bytes == 2 * 5 * 2 * spec.kv_heads * kv_head_bytes(kv, spec.head_dim)
        products = 2 * 2 * (68 + 69 + 70) * 2 * spec.heads * spec.head_dim
        assert row.gigamacs * row.seconds * 1e9 == pytest.approx(products)
        assert 0 < row.fastest <= row.seconds


@pytest.mark.parametrize("change", [{"rows": 0}, {"rows": 71}, {"trials": 0}])
def test_cases_without_work_are_refused(spec: AttentionSpec, change: dict[str, int]) -> None:
    with pytest.raises(HeadraceError, match="must be at least 1"):
        measure_attention(spec, replace(_SMALL, **change))
    with pytest.raises(HeadraceError, match="kv2"):
        measure_attention(spec, _SMALL, ["kv2"])  # type: ignore[list-item]
