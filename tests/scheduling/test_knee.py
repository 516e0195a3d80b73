"""The knee on machines whose curve is plain to see."""

from __future__ import annotations

import random

import pytest

from headrace.scheduling.knee import CONTEXT_STEPS, KNEE_STEPS, StepSample, find_knee


def test_flat_and_fixed_machines() -> None:
    flat = [StepSample(size, size * 1e-3) for size in (16, 64, 256)]
    assert find_knee(flat).tokens == 16
    fixed = [StepSample(size, 1.0) for size in (16, 64, 256)]
    assert find_knee(fixed).tokens == 1008
    assert find_knee([StepSample(64, 0.1)]).tokens == 16


def test_noise_moves_the_knee_little() -> None:
    """Times as measured on two cores in five starts, disturbed by up to a tenth: each choice is as good as the best."""
    rng = random.Random(4)
    for _ in range(200):
        samples = [StepSample(size, (0.0038 + 0.000614 * size) * rng.uniform(1.0, 1.1)) for size in (16, 32, 64, 128, 256)]
        chosen = find_knee(samples).tokens
        assert chosen / (0.0038 + 0.000614 * chosen) > 0.93 * 1024 / (0.0038 + 0.000614 * 1024)


def test_times_that_fall_or_grow_too_fast_still_give_a_size() -> None:
    assert find_knee([StepSample(16, 0.2), StepSample(64, 0.1)]).tokens == 1008
    assert find_knee([StepSample(16, 0.01), StepSample(64, 0.1)]).tokens == 16


def test_the_gap_target_wins() -> None:
    samples = [StepSample(size, 0.01 + size * 1e-4) for size in (16, 128, 1024)]
    assert find_knee(samples).tokens > 512  # 0.01 s a step whatever its size is much
    bound = find_knee(samples, gap_seconds=0.03)
    assert bound.tokens == 192
    assert bound.seconds == pytest.approx(0.0292)
    assert find_knee(samples, gap_seconds=1e-3).tokens == 16


def test_a_disturbed_sample_does_not_count() -> None:
    clean = [StepSample(16, 0.03), StepSample(64, 0.04), StepSample(128, 0.06)]
    assert find_knee([*clean, StepSample(64, 0.9)]) == find_knee(clean)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no calibration samples"):
        find_knee([])


def test_calibration_varies_what_it_has_to() -> None:
    assert [step.tokens for step in KNEE_STEPS] == [16, 32, 64, 128, 256]
    assert len({step.pairs / step.tokens for step in KNEE_STEPS}) == 1
    assert max(step.pairs / step.tokens for step in CONTEXT_STEPS) > 50 * KNEE_STEPS[0].pairs / KNEE_STEPS[0].tokens
