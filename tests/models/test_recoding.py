"""Recoded weights: near what they were, by the tables' own decoder; refused where they make no sense."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised_models import random_matrix

from headrace.errors import HeadraceError
from headrace.models.recoding import AUTO_ROWS, RecodedWeights, encode_q4, encode_q8, recode, recode_tensor
from headrace.models.weights import NO_BYTES, RawTensor, dequantise


class Source:
    """Some tensors as a weight source."""

    def __init__(self, **tensors: RawTensor) -> None:
        self._tensors = tensors

    @property
    def size_bytes(self) -> int:
        return sum(raw.data.size for raw in self._tensors.values())

    def names(self) -> Iterable[str]:
        return self._tensors

    def tensor(self, name: str) -> RawTensor:
        return self._tensors[name]

    def outline(self, name: str) -> RawTensor:
        raw = self._tensors[name]
        return RawTensor(raw.kind, raw.shape, NO_BYTES, raw.row_order)

    def release(self) -> None:
        """Nothing is mapped."""


def floats(rows: int, inputs: int, scale: float = 1.0) -> RawTensor:
    values = np.random.default_rng([rows, inputs]).standard_normal((rows, inputs), dtype=np.float32) * np.float32(scale)
    return RawTensor("F32", (rows, inputs), values.reshape(-1).view(np.uint8))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.sampled_from([32, 96]), st.sampled_from([1e-3, 1.0, 300.0]))
def test_rounding_is_to_the_nearest_code(rows: int, inputs: int, scale: float) -> None:
    raw = floats(rows, inputs, scale)
    values = dequantise(raw).reshape(-1, 32)
    for kind, steps in (("Q8_0", 127), ("Q4_1", 15)):
        again = dequantise(recode_tensor(raw, kind)).reshape(-1, 32)
        span = np.abs(values).max(axis=1) if kind == "Q8_0" else values.max(axis=1) - values.min(axis=1)
        slack = 0.51 * span / steps + np.abs(values).max(axis=1) * 2**-10
        assert (np.abs(again - values).max(axis=1) <= slack).all(), kind
    assert np.abs(dequantise(recode_tensor(raw, "BF16")) - dequantise(raw)).max() <= np.abs(values).max() * 2**-8


def test_equal_and_zero_groups_are_exact() -> None:
    values = np.repeat(np.array([0.0, 0.5, -3.0], np.float32), 32)
    for kind, encode in (("Q4_1", encode_q4), ("Q8_0", encode_q8)):
        again = dequantise(RawTensor(kind, (3, 32), encode(values)))
        assert np.allclose(again.reshape(-1), values, rtol=1e-3 if kind == "Q8_0" else 0)


def test_rows_come_in_canonical_order() -> None:
    raw = floats(4, 32)
    turned = RawTensor(raw.kind, raw.shape, raw.data, np.array([2, 0, 3, 1], np.int32))
    assert np.array_equal(dequantise(recode_tensor(turned, "BF16")), dequantise(recode_tensor(raw, "BF16"))[[2, 0, 3, 1]])


def test_rows_of_8_bits_change_only_what_kinds_say() -> None:
    turned = np.array([1, 0], np.int32)
    whole = recode_tensor(floats(2, 64), "Q4_1")
    source = Source(a=RawTensor("Q4_1", whole.shape, whole.data, turned), b=floats(2, 64), c=floats(2, 40))
    usual, grouped = recode(source, "a16"), recode(source, "a8")
    assert [grouped.outline(name).kind for name in grouped.names()] == ["Q4_1A8", "Q8_0A8", "F32"]
    assert [usual.outline(name).kind for name in usual.names()] == ["Q4_1", "Q8_0", "F32"]
    for name in source.names():
        assert grouped.tensor(name).kind == grouped.outline(name).kind
        assert np.array_equal(grouped.tensor(name).data, usual.tensor(name).data)
        assert np.array_equal(dequantise(grouped.tensor(name)), dequantise(usual.tensor(name)))


def test_every_choice_says_what_it_does() -> None:
    vector = RawTensor("F32", (32,), np.zeros(128, np.uint8))
    source = Source(a=recode_tensor(floats(2, 64), "Q4_1"), b=recode_tensor(floats(2, 64), "BF16"), c=floats(2, 40), norm=vector)
    auto, sixteen = recode(source, "auto"), recode(source, "a16")
    assert [sixteen.outline(name).kind for name in sixteen.names()] == ["Q4_1", "Q8_0", "F32", "F32"]
    assert sixteen.tensor("b").kind == "Q8_0"
    assert [auto.outline(name).kind for name in auto.names()] == [recode(source, AUTO_ROWS).outline(n).kind for n in auto.names()]
    assert recode(source, "bf16").tensor("c").kind == "BF16"
    assert recode(Source(a=source.tensor("a")), "a16").tensor("a") is source.tensor("a")
    with pytest.raises(HeadraceError, match="w8 needs groups of 32 inputs, c has 40") as caught:
        recode(source, "w8")
    assert (caught.value.code, caught.value.param) == ("invalid_setting", "weights")
    whole = recode(Source(a=source.tensor("a"), b=source.tensor("b")), "w4")
    assert isinstance(whole, RecodedWeights)
    assert whole.kinds == {"b": "Q4_1"}


@pytest.mark.parametrize(("kind", "row_bytes"), [("Q4_0", 144), ("Q4_1", 160), ("Q4_K", 144)])
def test_codes_of_4_bits_stay(kind: str, row_bytes: int) -> None:
    source = Source(a=RawTensor(kind, (3, 256), np.zeros(3 * row_bytes, np.uint8)))
    assert recode(source, "w4") is source
    assert recode(source, "w8").outline("a").kind == "Q8_0"


def test_calibrated_codes_are_not_rounded_again() -> None:
    source = Source(a=random_matrix("a", (16, 64), 32).encode())
    for weights in ("w4", "w8"):
        with pytest.raises(HeadraceError, match="headrace quantize"):
            recode(source, weights)
    assert recode(source, "bf16").tensor("a").kind == "BF16"
    assert recode(source, "auto") is source


def test_weights_that_are_no_numbers_are_refused() -> None:
    values = np.full((1, 32), np.nan, np.float32)
    with pytest.raises(HeadraceError, match="not a number"):
        recode_tensor(RawTensor("F32", (1, 32), values.reshape(-1).view(np.uint8)), "Q8_0")
