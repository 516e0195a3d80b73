"""The knee on machines whose curve is plain to see."""

from __future__ import annotations

import pytest

from headrace.scheduling.knee import CONTEXT_STEPS, KNEE_STEPS, StepSample, find_knee


def test_flat_and_fixed_machines() -> None:
    flat = [StepSample(size, size * 1e-3) for size in (16, 64, 256)]
    assert find_knee(flat).tokens == 16
    fixed = [StepSample(size, 1.0) for size in (16, 64, 256)]
    assert find_knee(fixed).tokens == 256


def test_the_gap_target_wins() -> None:
    samples = [StepSample(size, 0.01 + size * 1e-4) for size in (16, 128, 1024)]
    assert find_knee(samples).tokens > 512
    bound = find_knee(samples, gap_seconds=0.03)
    assert bound.tokens == 192
    assert bound.seconds == pytest.approx(0.0292)
    assert find_knee(samples, gap_seconds=1e-3).tokens == 16


def test_a_disturbed_sample_does_not_count() -> None:
    samples = [StepSample(16, 0.03), StepSample(64, 0.9), StepSample(64, 0.032), StepSample(128, 0.0635)]
    assert find_knee(samples).tokens == 64


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no calibration samples"):
        find_knee([])


def test_calibration_varies_what_it_has_to() -> None:
    assert [step.tokens for step in KNEE_STEPS] == [16, 32, 64, 128, 256, 512, 1024]
    assert len({step.pairs / step.tokens for step in KNEE_STEPS}) == 1
    assert max(step.pairs / step.tokens for step in CONTEXT_STEPS) > 50 * KNEE_STEPS[0].pairs / KNEE_STEPS[0].tokens
