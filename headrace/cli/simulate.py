"""``headrace simulate``: a dispatch policy over up to a thousand instances, in simulated time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from headrace.cli.arguments import arguments
from headrace.cli.models import Loading
from headrace.cli.output import number, progress_bar, stdout, table
from headrace.engine.machine import usable_cores
from headrace.errors import HeadraceError
from headrace.evaluation.layout_costs import measure_layout
from headrace.evaluation.layout_plans import layouts_of
from headrace.placement.scaling import ScalingRule
from headrace.planning.cluster import Cluster, Exchange, Outcome
from headrace.planning.dispatch import DISPATCHERS
from headrace.planning.targets import tail
from headrace.planning.workload import Traffic, parse_lengths
from headrace.settings.declaration import option, validate

_MOST = 1000
_MOVES = "+moves"
_POLICIES = (*DISPATCHERS.names, *(name + _MOVES for name in DISPATCHERS.names))


@dataclass(frozen=True, slots=True)
class SimulateArguments:
    """What is simulated."""

    model: str = option("smollm2", help="Model whose step times on this machine are those of every instance.")
    instances: str = option("4", help="Instances, each like this machine, 1 to 1,000; as 1..16 they follow the load.")
    dispatch: str = option("freest", choices=_POLICIES, help="Who gets a new request; with moves, full instances give some away.")
    rate: float = option(4.0, unit="requests/s", minimum=0.001, maximum=1e6, help="Requests a second, in all.")
    requests: int = option(10_000, minimum=1, maximum=10_000_000, help="Requests in all.")
    prompt: str = option("lognormal:200:0.8", help="Prompt lengths in tokens, as `headrace bench serve` takes them.")
    output: str = option("lognormal:100:0.6", help="Output lengths in tokens.")
    shape: float = option(1.0, minimum=0.05, maximum=100.0, help="Arrivals: 1 Poisson, below 1 burstier, above 1 more regular.")
    seed: int = option(0, minimum=0, maximum=2**63 - 1, help="Seed of the requests.")

    def __post_init__(self) -> None:
        validate(self)
        self.span()

    def span(self) -> tuple[int, int]:
        """The least and the most instances. Raises ``invalid_setting``."""
        low, dots, high = self.instances.partition("..")
        least, most = (int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0 for text in (low, high or low))
        if not 1 <= least <= most <= _MOST or (dots and not high):
            message = f"instances must be 1 to {_MOST:,}, or LEAST..MOST, not {self.instances[:32]!r}"
            raise HeadraceError("invalid_setting", message, param="instances")
        return least, most


@click.command()
@arguments(SimulateArguments)
def simulate(wanted: SimulateArguments) -> None:
    """Serve a million requests on a thousand instances in simulated time, and print latencies.

    Every instance runs the scheduler that serves; only the kernels are replaced, by step times measured on this machine.

    \b
    headrace simulate --instances 16 --rate 30
    headrace simulate --instances 1..16 --rate 10 --shape 0.2 --dispatch freest+moves
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
        least, most = wanted.span()
        exchange = Exchange(
            balanced=wanted.dispatch.endswith(_MOVES), scaling=ScalingRule(least=least, most=most) if least < most else None
        )
        cluster = Cluster(knee.instances * most, DISPATCHERS.get(wanted.dispatch.removesuffix(_MOVES))(most), exchange)
        outcome = cluster.run(
            traffic.arrivals(wanted.rate, wanted.requests, wanted.seed), lambda sent: report("simulating", sent, wanted.requests)
        )
        seconds = time.perf_counter() - began
    _print(wanted, outcome, seconds)
    _print_exchange(cluster, outcome)


def _print(wanted: SimulateArguments, outcome: Outcome, seconds: float) -> None:
    served = outcome.served
    values = {
        "first token": [one.ttft for one in served],
        "time per token": [one.tpot for one in served if one.output > 1],
        "longest gap": [one.longest_gap for one in served if one.output > 1],
    }
    rows = [(name, *(number(1000 * tail(found, point)) for point in (50, 90, 99, 100))) for name, found in values.items()]
    title = f"{len(served):,} requests on {wanted.instances} instances, {wanted.dispatch}, milliseconds"
    stdout().print(table(title, ("", "p50", "p90", "p99", "worst"), rows))
    lasted = max((one.progress.last for one in served), default=0.0)
    tokens = sum(one.output for one in served)
    line = f"{lasted:,.0f} s of serving in {seconds:,.1f} s, {tokens / max(lasted, 1e-9):,.0f} tokens/s"
    stdout().print(line + (f", {outcome.refused:,} requests fit no instance" if outcome.refused else ""), style="dim")


def _print_exchange(cluster: Cluster, outcome: Outcome) -> None:
    """Moves, and how many instances there were."""
    if cluster.balancing is not None or cluster.resizing is not None:
        still = cluster.crossings.still
        line = f"{cluster.crossings.done:,} moves, {number(1000 * tail(still, 99)) if still else 0} ms out of the batch at p99"
        stdout().print(line, style="dim")
    resizing = cluster.resizing
    if resizing is not None:
        lasted = max((one.progress.last for one in outcome.served), default=0.0)
        line = (
            f"{resizing.spent / max(lasted, 1e-9):,.1f} instances on average, {resizing.begun} started and {resizing.ended} ended"
        )
        stdout().print(line, style="dim")
