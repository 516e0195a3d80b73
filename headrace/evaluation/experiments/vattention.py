"""vAttention: sequences as contiguous views of shared pages, against page tables and gathering."""

from __future__ import annotations

import random
from collections.abc import Sequence

from headrace.engine.loop import Engine
from headrace.engine.wire import Submit
from headrace.evaluation.exactness import ExactLoad, mixed_requests
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings
from headrace.evaluation.experiments import _vattention_memory as memory
from headrace.evaluation.experiments._vattention_kernels import native_claims, torch_claims
from headrace.evaluation.trials import Bench, SwapVariant, Trace, Traces, run_all
from headrace.memory.views import Views
from headrace.scheduling.item import ItemState
from headrace.scheduling.settings import SchedulingSettings


def run(conditions: Conditions) -> Findings:
    """All measurements on one loaded model."""
    with Bench(conditions, views=True) as bench:
        claims = [
            *memory.trace_claims(bench, conditions),  # first: memory once taken is kept
            *_exact(bench, conditions),
            *memory.children_claims(bench, conditions),
            *native_claims(bench, conditions),
            *torch_claims(bench, conditions),
        ]
    return Findings((*claims, *memory.fault_claims(), *memory.soak_claims(conditions)))


def _exact(bench: Bench, conditions: Conditions) -> list[Claim]:
    count, longest = (10, 60) if conditions.quick else (64, 240)
    submits = mixed_requests(bench, count, longest, conditions.seed)
    alone: dict[tuple[int, int], Trace] = {}
    for number, submit in enumerate(submits):
        conditions.report("each request alone", number, count)
        alone |= run_all(bench.engine(), [submit])
    load = ExactLoad(submits, alone)
    budget = SchedulingSettings(step_tokens=128)
    claims = [
        Claim("tables", "together, by tables", "==", 100, load.same(run_all(bench.engine(budget), submits)), "% same bits"),
    ]
    needed = sum(-(-(len(one.prompt) + one.params.max_tokens) // 16) * one.params.n for one in submits)
    scarce = max(needed // 3, max(-(-(len(one.prompt) + 30) // 16) for one in submits) + 4)
    for name, what, swap, pages in (
        ("views", "together, in views", None, None),
        (
            "moved",
            "in views, on a third of the pages, their pages leaving for the disk and coming back elsewhere",
            SwapVariant(),
            scarce,
        ),
    ):
        views = bench.views()
        engine = bench.engine(budget, pages, swap, views)
        traces = _run_forgetting(engine, views, submits, conditions.seed)
        gauges, moves = engine.gauges().views, engine.gauges().moves
        assert gauges is not None
        engine.close()
        note = f"{gauges.shown_pages + gauges.ahead_pages} pages shown, ranges cleared at random between steps"
        note += f", {moves.read_pages} pages came back" if moves is not None else ""
        claims.append(Claim(name, what, "==", 100, load.same(traces), "% same bits", note))
    return claims


def _run_forgetting(engine: Engine, views: Views, submits: Sequence[Submit], seed: int) -> Traces:
    """Run all; between steps random sequences lose their ranges, and where they can leave for a disk some are sent there."""
    rng = random.Random(seed)
    traces: dict[tuple[int, int], Trace] = {}
    for submit in submits:
        engine.submit(submit)
    while engine.live:
        outputs = engine.step()
        if outputs is None:
            engine.wait_compiled(0.05)
            continue
        for output in outputs.outputs:
            traces.setdefault((output.request_id, output.choice), Trace()).take(output)
        for owner, choice in list(engine._choices.items()):
            if rng.random() < 0.1:
                views.forget(owner)
            if engine._moving is not None and choice.item.state is ItemState.RUNNING and rng.random() < 0.03:
                engine.scheduler.preempt(choice.item)
    return traces


EXPERIMENT = Experiment(
    name="vattention",
    title="Pages of a sequence stand in a row in virtual memory: any attention kernel reads them, nothing is gathered or copied.",
    source="vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention",
    minutes=4,
    run=run,
)
