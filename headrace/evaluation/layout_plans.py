"""From this machine's measured step times to plans: which layouts there are, what is promised, and which keeps it best."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from headrace.engine.build import GAP_SLACK
from headrace.evaluation.layout_costs import LayoutCost, measure_layout, thread_layouts
from headrace.placement.roles import Role
from headrace.planning.instance import InstanceModel
from headrace.planning.search import PRECISION, Layout, Plan, Requests, Sample, run_at, search
from headrace.planning.targets import Targets, tail

STEPS = (32, 64, 256)  # sizes of steps that are tried beside the knee
_QUIET_RATE = 1e-3  # a rate at which requests don't meet
_QUIET_REQUESTS = 200
COPY_RATE = 1.5e9
"""Bytes a second from one engine to another beside their steps, sums included."""
TTFT_TIMES, TPOT_TIMES = 5.0, 2.0  # promises where none are given, as multiples of the unloaded median

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is planned for. ``ttft`` and ``tpot`` in seconds, ``None``: 5 and 2 times what a request alone gets."""

    model: str
    requests: Requests
    count: int
    seed: int = 0
    ttft: float | None = None
    tpot: float | None = None
    share: float = 0.9
    most_instances: int = 8


@dataclass(frozen=True, slots=True)
class Planned:
    """Plans, best first, what was promised, and how the sample was drawn."""

    plans: list[Plan]
    targets: Targets
    sample: Sample

    @property
    def margin(self) -> Margin | None:
        """How much better the first plan is than the best one with other instances or roles; ``None``: there is no other."""
        first = self.plans[0]
        others = [one for one in self.plans if _kind(one.layout) != _kind(first.layout)]
        rival = max(others, key=lambda one: one.goodput, default=None)
        if rival is None or not rival.goodput:
            return None
        share = first.goodput / rival.goodput - 1
        return Margin(rival, share, abs(share) > PRECISION)


@dataclass(frozen=True, slots=True)
class Margin:
    """``share`` by which a plan's goodput is above the ``rival``'s; ``clear``: more than the search can tell apart."""

    rival: Plan
    share: float
    clear: bool


def _kind(layout: Layout) -> tuple[int, tuple[Role, ...]]:
    return len(layout.instances), layout.roles


def make_plans(wish: Wish, report: Report) -> Planned:
    """Measure layouts, unless that is remembered, and search. Raises what opening the model raises."""
    cores = sorted(os.sched_getaffinity(0))
    shapes = [shape for shape in thread_layouts(len(cores)) if shape[0] <= wish.most_instances]
    costs = []
    for number, (instances, threads) in enumerate(shapes):
        report(f"measuring {instances} × {threads} threads", number, len(shapes))
        costs.append(measure_layout(wish.model, instances, threads, cores))
    layouts = [layout for cost in costs for layout in layouts_of(cost)]
    sample = Sample(wish.requests, wish.count, wish.seed)
    targets = promised(layouts[0], sample, wish)
    return Planned(search(layouts, sample, targets, first_guess(layouts[0], sample), report), targets, sample)


def layouts_of(cost: LayoutCost) -> list[Layout]:
    """All layouts of one division of the cores: steps of the knee's size, smaller and larger, and all divisions into roles."""
    count = cost.instances
    found = []
    threads = f"{cost.threads} thread{'s' * (cost.threads > 1)}"
    for tokens in sorted({cost.calibration.knee, *STEPS}):
        found.append(Layout(f"{count} × {threads}, steps of {tokens}", (_model(cost, tokens),) * count, cost.threads))
        for prompts in range(1, count):
            name, roles = f"{prompts} prefill + {count - prompts} decode × {threads}, steps of {tokens}", _split(prompts, count)
            found.append(Layout(name, tuple(_model(cost, tokens, role) for role in roles), cost.threads, roles=roles))
    return found


def _model(cost: LayoutCost, tokens: int, role: Role = "all") -> InstanceModel:
    seconds = GAP_SLACK * cost.calibration.knee_seconds  # the server's own bound, whatever --step-tokens says
    return InstanceModel(cost.cost(role), cost.pages, tokens, seconds, page_seconds=cost.page_bytes / COPY_RATE)


def _split(prompts: int, count: int) -> tuple[Role, ...]:
    each: list[Role] = ["prefill" if number < prompts else "decode" for number in range(count)]
    return tuple(each)


def promised(layout: Layout, sample: Sample, wish: Wish) -> Targets:
    """The targets that were asked for, or those that follow from requests that have the machine to themselves."""
    alone = run_at(layout, replace(sample, count=min(_QUIET_REQUESTS, sample.count)), _QUIET_RATE).served
    ttft = wish.ttft if wish.ttft is not None else TTFT_TIMES * tail([served.ttft for served in alone], 50)
    tpot = wish.tpot if wish.tpot is not None else TPOT_TIMES * tail([served.tpot for served in alone if served.output > 1], 50)
    return Targets(ttft, tpot, wish.share)


def first_guess(layout: Layout, sample: Sample) -> float:
    """Requests a second that one after the other would be served."""
    alone = run_at(layout, replace(sample, count=min(_QUIET_REQUESTS, sample.count)), _QUIET_RATE).served
    return len(alone) / max(1e-9, sum(served.progress.last - served.sent for served in alone))


def settings_of(layout: Layout) -> Sequence[str]:
    """The options of `headrace serve` that make the layout; its threads are those of all instances."""
    count = len(layout.instances)
    options = [f"--threads {count * layout.threads}", f"--step-tokens {layout.step_tokens}"]
    return [f"--instances {','.join(layout.roles) or count}", *options] if count > 1 else options
