"""Requests before they run: where greedy ends and drawing begins."""

from __future__ import annotations

import numpy as np
import pytest
from toy_chain import VOCAB

from headrace.engine.request import Limits, make_choices, make_request
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.kernels.sampler import REQUEST_DTYPE, Sampler

LIMITS = Limits(VOCAB, 64, (1,))
BORDER = float(np.float32(1e-6))


@pytest.mark.parametrize(
    "temperature", [0.0, 9e-7, np.nextafter(BORDER, 0.0), BORDER, np.nextafter(1e-6, 0.0), 1e-6, np.nextafter(1e-6, 1.0), 1.1e-6]
)
def test_greedy_means_the_same_here_and_in_the_native_sampler(temperature: float) -> None:
    request = make_request(Submit(1, [5], SamplingParams(temperature=float(temperature), n=16, seed=3)), 0.0, LIMITS)
    choices = make_choices(request, 1, LIMITS)
    records = np.frombuffer(bytearray(b"".join(choice.record for choice in choices)), REQUEST_DTYPE)
    tokens = Sampler(VOCAB).sample(np.zeros((1, VOCAB), np.float32), records).records["token"]  # all are equal: a draw shows
    assert {choice.plain for choice in choices} == {bool((tokens == 0).all())}
