"""Groups of nibbles against the tables' own decoder."""

from __future__ import annotations

import numpy as np
import pytest
from nibble_matrices import nibble_matrix

from headrace.models.nibble_groups import GROUP, NIBBLE_KINDS, nibble_groups
from headrace.models.weights import RawTensor, dequantise


@pytest.mark.parametrize("kind", NIBBLE_KINDS)
def test_every_kind_is_taken_apart_as_it_is_decoded(kind: str) -> None:
    raw = nibble_matrix(kind, 5, 512, np.random.default_rng(3))
    turned = RawTensor(kind, raw.shape, raw.data, np.array([3, 0, 4, 1, 2], np.int32))
    found = nibble_groups(turned)
    assert found.codes.min() == 0
    assert found.codes.max() == 15
    values = found.codes * np.repeat(found.scales, GROUP, axis=1) + np.repeat(found.minima, GROUP, axis=1)
    np.testing.assert_allclose(values, dequantise(turned), rtol=1e-5, atol=1e-6)
