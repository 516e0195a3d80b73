"""``headrace simulate``: a dispatch policy over up to a thousand instances, in simulated time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from headrace.cli.arguments import arguments
from headrace.cli.models import Loading
from headrace.cli.output import number, progress_bar, stdout, table
from headrace.engine.machine import usable_cores
from headrace.evaluation.layout_costs import measure_layout
from headrace.evaluation.layout_plans import layouts_of
from headrace.planning.cluster import Outcome, simulate_cluster
from headrace.planning.dispatch import DISPATCHERS
from headrace.planning.targets import tail
from headrace.planning.workload import Traffic, parse_lengths
from headrace.settings.declaration import option, validate


@dataclass(frozen=True, slots=True)
class SimulateArguments:
    """What is simulated."""

    model: str = option("smollm2", help="Model whose step times on this machine are those of every instance.")
    instances: int = option(4, minimum=1, maximum=1000, help="Instances, each like this machine.")
    dispatch: str = option("freest", choices=DISPATCHERS.names, help="Who gets a new request.")
    rate: float = option(4.0, unit="requests/s", minimum=0.001, maximum=1e6, help="Requests a second, in all.")
    requests: int = option(10_000, minimum=1, maximum=10_000_000, help="Requests in all.")
    prompt: str = option("lognormal:200:0.8", help="Prompt lengths in tokens, as `headrace bench serve` takes them.")
    output: str = option("lognormal:100:0.6", help="Output lengths in tokens.")
    shape: float = option(1.0, minimum=0.05, maximum=100.0, help="Arrivals: 1 Poisson, below 1 burstier, above 1 more regular.")
    seed: int = option(0, minimum=0, maximum=2**63 - 1, help="Seed of the requests.")

    def __post_init__(self) -> None:
        validate(self)


@click.command()
@arguments(SimulateArguments)
def simulate(wanted: SimulateArguments) -> None:
    """Serve a million requests on a thousand instances in simulated time, and print latencies.

    Every instance runs the scheduler that serves; only the kernels are replaced, by step times measured on this machine.

    \b
    headrace simulate --instances 16 --rate 30
    headrace simulate --instances 1000 --requests 1000000 --rate 1500 --dispatch round_robin
    """
    cores = usable_cores()
    with progress_bar() as bar:
        report = Loading(bar)
        cost = measure_layout(wanted.model, 1, cores, list(range(cores)))
        knee = next(layout for layout in layouts_of(cost) if layout.step_tokens == cost.calibration.knee)
        traffic = Traffic(
            parse_lengths(wanted.prompt, "prompt"), parse_lengths(wanted.output, "output"), wanted.shape,
            cost.pages * knee.instances[0].page_tokens,
        )  # fmt: skip
        began = time.perf_counter()
        outcome = simulate_cluster(
            knee.instances * wanted.instances,
            DISPATCHERS.get(wanted.dispatch)(wanted.instances),
            traffic.arrivals(wanted.rate, wanted.requests, wanted.seed),
            lambda sent: report("simulating", sent, wanted.requests),
        )
        seconds = time.perf_counter() - began
    _print(wanted, outcome, seconds)


def _print(wanted: SimulateArguments, outcome: Outcome, seconds: float) -> None:
    served = outcome.served
    values = {
        "first token": [one.ttft for one in served],
        "time per token": [one.tpot for one in served if one.output > 1],
        "longest gap": [one.longest_gap for one in served if one.output > 1],
    }
    rows = [(name, *(number(1000 * tail(found, point)) for point in (50, 90, 99, 100))) for name, found in values.items()]
    title = f"{len(served):,} requests on {wanted.instances:,} instances, {wanted.dispatch}, milliseconds"
    stdout().print(table(title, ("", "p50", "p90", "p99", "worst"), rows))
    lasted = max((one.progress.last for one in served), default=0.0)
    tokens = sum(one.output for one in served)
    line = f"{lasted:,.0f} s of serving in {seconds:,.1f} s, {tokens / max(lasted, 1e-9):,.0f} tokens/s"
    stdout().print(line + (f", {outcome.refused:,} requests fit no instance" if outcome.refused else ""), style="dim")
