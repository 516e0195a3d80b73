"""Options of scheduling: choices come from the registry, bounds are checked."""

from __future__ import annotations

import pytest

from headrace.errors import HeadraceError
from headrace.scheduling.composer import POLICIES, by_share
from headrace.scheduling.settings import SchedulingSettings


def test_settings_take_their_choices_from_it() -> None:
    assert POLICIES.get(SchedulingSettings().policy) is by_share
    with pytest.raises(HeadraceError, match="policy must be one of fair, fcfs, priority, prompts_whole_first"):
        SchedulingSettings(policy="lifo")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step_tokens", 15),
        ("step_tokens", 8193),
        ("gap_target_ms", 0),
        ("max_running", 0),
        ("max_waiting", 0),
        ("max_logit_rows", 15),
    ],
)
def test_bounds(field: str, value: int) -> None:
    with pytest.raises(HeadraceError) as caught:
        SchedulingSettings(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
