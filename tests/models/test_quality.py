"""What quantised arithmetic costs on real text: the native chain against plain torch in fp32."""

from __future__ import annotations

import pytest

from headrace.evaluation.quality import Quality, measure_native

pytestmark = pytest.mark.torch


def assert_nothing_noticeable_is_lost(quality: Quality, positions: int) -> None:
    assert quality.positions >= positions
    assert quality.top1_agreement >= 0.98
    assert quality.mean_kl <= 0.01
    assert abs(quality.perplexity_ratio - 1.0) <= 0.01
    assert quality.reference_perplexity < 60.0, "the reference itself does not understand the text"


@pytest.mark.model
def test_smollm2_loses_nothing_noticeable() -> None:
    assert_nothing_noticeable_is_lost(measure_native("smollm2-135m-instruct", count=4, length=512, threads=2), positions=2_000)


@pytest.mark.gemma
def test_gemma_loses_nothing_noticeable() -> None:
    """Beyond its window of 512; ``headrace reproduce qserve`` is the measurement on more text."""
    assert_nothing_noticeable_is_lost(measure_native("gemma-3-270m", count=1, length=640, threads=2), positions=600)
