"""The conformance tool finds nothing on these kernels, and finds what is there to be found."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from headrace.errors import HeadraceError
from headrace.evaluation import kernel_conformance
from headrace.evaluation.kernel_conformance import ROWS, _Case, _compare, _of_kind
from headrace.evaluation.kernel_speed import chosen_isas
from headrace.kernels import _native
from headrace.kernels.formats import runnable_instruction_sets, source_kinds


@pytest.mark.parametrize("kind", sorted(source_kinds()))
def test_every_kind_agrees_on_random_and_extreme_blocks(kind: str) -> None:
    pools = [_native.ThreadPool(threads) for threads in kernel_conformance.THREADS]
    try:
        for case in _of_kind(kind, 64, 2, pools[0]):
            for cell in _compare(case, runnable_instruction_sets(), pools):
                assert cell.mismatches == 0
                assert cell.products == len(ROWS) * len(pools)
                assert cell.outputs == len(pools) * sum(ROWS) * cell.columns
    finally:
        _native.set_isa("auto")


class _OneWrongBit:
    """A matrix whose product of 16 rows differs in the last bit of one output."""

    inputs, columns, formats = 32, 16, ("w4",)

    def matmul(self, x: np.ndarray[Any, np.dtype[np.float32]], _: object) -> np.ndarray[Any, np.dtype[np.float32]]:
        out = np.repeat(x[:, :1], 16, 1)
        if len(x) == 16:
            out[3, 5] = np.nextafter(out[3, 5], np.float32(np.inf))
        return out


def test_one_wrong_bit_is_counted() -> None:
    case = _Case("broken", cast("_native.PackedMatrix", _OneWrongBit()), ROWS)
    try:
        cells = list(_compare(case, ["portable"], [_native.ThreadPool(1), _native.ThreadPool(2)]))
    finally:
        _native.set_isa("auto")
    assert [cell.mismatches for cell in cells] == [2]


def test_instruction_sets_are_named_or_refused() -> None:
    assert chosen_isas(["auto", "auto"]) == [_native.isa()]
    assert "amx-emulated" not in chosen_isas(["all"])
    assert chosen_isas(["portable"]) == ["portable"]
    with pytest.raises(HeadraceError, match="unknown; there are auto, all"):
        chosen_isas(["sse9"])
