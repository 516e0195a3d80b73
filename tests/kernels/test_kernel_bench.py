"""The kernel measurements are complete, positive and consistent with each other."""

from __future__ import annotations

import pytest

from headrace.errors import HeadraceError
from headrace.kernels import bench


def test_every_combination_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STREAM_BYTES", 1 << 20)
    rows = bench.kernel_table_rows([(64, 64), (96, 256)], ["Q4_1", "BF16", "INT4G64A8"], rows=(1, 8), seconds=0.002)
    assert [(row.kind, row.outputs, row.rows) for row in rows] == [
        (kind, outputs, count) for kind in ("Q4_1", "BF16", "INT4G64A8") for outputs in (64, 96) for count in (1, 8)
    ]
    for row in rows:
        assert row.gmacs == pytest.approx(row.rows * row.outputs * row.inputs / row.seconds / 1e9)
        assert row.gigabytes > 0
        assert row.threads == 1


def test_unknown_kind_and_odd_width_are_refused() -> None:
    with pytest.raises(HeadraceError, match="Q9") as refusal:
        bench.kernel_table_rows([(16, 64)], ["Q9"])
    assert refusal.value.param == "kinds"
    with pytest.raises(HeadraceError, match="multiples of 256"):
        bench.kernel_table_rows([(16, 64)], ["Q4_K"])
