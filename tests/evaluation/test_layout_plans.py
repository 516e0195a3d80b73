"""What a plan says is what `headrace serve` would do."""

from __future__ import annotations

from headrace.evaluation.layout_costs import thread_layouts
from headrace.evaluation.layout_plans import settings_of
from headrace.instances.shape import split_machine
from headrace.planning.instance import InstanceModel
from headrace.planning.search import Layout
from headrace.scheduling.cost import Cost


def test_the_options_make_the_layout() -> None:
    model = InstanceModel(Cost(), 100, 64)
    for count, threads in thread_layouts(8):
        given = dict(option.split() for option in settings_of(Layout("x", (model,) * count, threads)))
        parts = split_machine(int(given.get("--instances", "1")), int(given["--threads"]), range(8))
        assert [part.threads for part in parts] == [threads] * count
        assert given["--step-tokens"] == "64"
