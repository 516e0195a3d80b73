"""The table of named choices."""

from __future__ import annotations

import pytest

from headrace.errors import HeadraceError
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.registry import Registry


def test_names_and_choices() -> None:
    registry = Registry("mode", {"slow": 1, "fast": 2})
    assert registry.names == ("slow", "fast")
    assert registry.get("fast") == 2


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(HeadraceError, match="did you mean 'prompts_whole_first'") as caught:
        POLICIES.get("prompt_whole_first")
    assert (caught.value.code, caught.value.param) == ("invalid_setting", "policy")
