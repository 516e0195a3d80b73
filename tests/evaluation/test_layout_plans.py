"""What a plan says is what `headrace serve` would do."""

from __future__ import annotations

from dataclasses import replace

from headrace.engine.calibration import Calibration
from headrace.evaluation.layout_costs import LayoutCost, thread_layouts
from headrace.evaluation.layout_plans import Planned, layouts_of, settings_of
from headrace.instances.shape import split_machine
from headrace.placement.roles import read_instances
from headrace.planning.instance import InstanceModel
from headrace.planning.search import Layout, Plan, Sample
from headrace.planning.targets import Targets
from headrace.planning.workload import Lengths, Traffic
from headrace.scheduling.cost import Cost


def test_the_options_make_the_layout() -> None:
    model = InstanceModel(Cost(), 100, 64)
    for count, threads in thread_layouts(8):
        given = dict(option.split() for option in settings_of(Layout("x", (model,) * count, threads)))
        parts = split_machine(int(given.get("--instances", "1")), int(given["--threads"]), range(8))
        assert [part.threads for part in parts] == [threads] * count
        assert given["--step-tokens"] == "64"


def test_the_options_make_the_roles() -> None:
    cost = LayoutCost(3, 1, Calibration(64, 0.02, Cost()), 100, 4096)
    layouts = [layout for layout in layouts_of(cost) if layout.step_tokens == 64]
    given = [dict(option.split() for option in settings_of(layout))["--instances"] for layout in layouts]
    assert given == ["3", "prefill,decode,decode", "prefill,prefill,decode"]
    assert [read_instances(tuple(text.split(","))) for text in given[1:]] == [layout.roles for layout in layouts[1:]]


def test_the_margin_is_over_other_instances_or_roles() -> None:
    model = InstanceModel(Cost(), 100, 64)
    one, other = Layout("one", (model,), 2), Layout("other", (replace(model, step_tokens=32),), 2)
    split = Layout("split", (model,) * 2, 1, roles=("prefill", "decode"))
    plans = [Plan(layout, rate, ()) for layout, rate in ((one, 3.0), (other, 2.9), (split, 2.0))]
    sample = Sample(Traffic(Lengths("fixed", 1), Lengths("fixed", 1)))
    margin = Planned(plans, Targets(1.0, 1.0), sample).margin
    assert margin is not None
    assert (margin.rival.layout.name, margin.share, margin.clear) == ("split", 0.5, True)
    assert Planned(plans[:2], Targets(1.0, 1.0), sample).margin is None
