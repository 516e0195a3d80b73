"""``headrace plan``: which instances, threads and steps keep which promises at which rate, found by simulation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
from rich.text import Text

from headrace.cli.arguments import arguments
from headrace.cli.models import Loading
from headrace.cli.output import number, progress_bar, stdout, table, write_json
from headrace.engine.pool_size import context_length
from headrace.engine.settings import EngineSettings
from headrace.evaluation.layout_plans import Margin, Planned, Wish, make_plans, settings_of
from headrace.models.catalog import find_model, open_model
from headrace.planning.search import Plan, Requests, run_at
from headrace.planning.targets import attainment, interval
from headrace.planning.workload import Traffic, parse_lengths, read_trace
from headrace.settings.declaration import option, validate

_FILE = click.Path(path_type=Path, dir_okay=False)
_BAR = 50


@dataclass(frozen=True, slots=True)
class PlanArguments:
    """What is planned for."""

    model: str = option("smollm2", help="Model to serve.")
    prompt: str = option("lognormal:200:0.8", help="Prompt lengths in tokens, as `headrace bench serve` takes them.")
    output: str = option("lognormal:100:0.6", help="Output lengths in tokens.")
    shape: float = option(1.0, minimum=0.05, maximum=100.0, help="Arrivals: 1 Poisson, below 1 burstier, above 1 more regular.")
    rate: float | None = option(
        None, unit="requests/s", minimum=0.001, maximum=1e6, help="Also say what each layout keeps at this rate."
    )
    ttft_ms: int | None = option(None, unit="ms", minimum=1, maximum=3_600_000, help="First token within. Default: 5 x unloaded.")
    tpot_ms: int | None = option(None, unit="ms", minimum=1, maximum=600_000, help="Mean time per token. Default: 2 x unloaded.")
    share: int = option(90, unit="%", minimum=1, maximum=100, help="Requests that must keep both promises.")
    requests: int = option(600, minimum=50, maximum=1_000_000, help="Requests simulated for each rate.")
    seed: int = option(0, minimum=0, maximum=2**63 - 1, help="Seed of the requests.")

    def __post_init__(self) -> None:
        validate(self)


@click.command()
@click.option("--trace", type=_FILE, help="Requests that came once, instead of distributions: lines of time, prompt, output.")
@click.option("--json", "json_file", type=_FILE, help="Write all plans to this file.")
@arguments(PlanArguments)
def plan(wanted: PlanArguments, trace: Path | None, json_file: Path | None) -> None:
    """Find how to divide this machine: instances, roles, threads and size of steps with the highest rate that keeps your promises.

    Step times are measured on this machine, with all instances of a layout computing at once (seconds, then remembered). The
    scheduler that serves then runs in simulated time, and the rate is raised until too few requests keep both promises.

    \b
    headrace plan
    headrace plan --prompt lognormal:1700:0.5 --output lognormal:90:0.5 --ttft-ms 2000 --tpot-ms 60
    headrace plan --trace requests.jsonl --rate 3
    """
    longest = context_length(open_model(find_model(wanted.model), None).config, EngineSettings(model=wanted.model))
    requests: Requests = Traffic(
        parse_lengths(wanted.prompt, "prompt"), parse_lengths(wanted.output, "output"), wanted.shape, longest
    )
    count = wanted.requests
    if trace is not None:
        traced = read_trace(trace, longest)
        requests, count = traced, min(count, len(traced.requests))
    wish = Wish(
        wanted.model, requests, count, wanted.seed,
        wanted.ttft_ms / 1000 if wanted.ttft_ms is not None else None,
        wanted.tpot_ms / 1000 if wanted.tpot_ms is not None else None,
        wanted.share / 100,
    )  # fmt: skip
    with progress_bar() as bar:
        planned = make_plans(wish, Loading(bar))
    rated = _at_rate(planned, wanted.rate)
    _print(planned, rated)
    if json_file is not None:
        write_json(json_file, _document(wanted, planned, rated))


def _at_rate(planned: Planned, rate: float | None) -> dict[str, float]:
    """Attainment of each layout at a rate, by name; none without a rate."""
    if rate is None:
        return {}
    return {one.layout.name: attainment(run_at(one.layout, planned.sample, rate), planned.targets) for one in planned.plans}


def _print(planned: Planned, rated: dict[str, float]) -> None:
    targets, best = planned.targets, planned.plans[0]
    out = stdout()
    rows = [_row(one, best, planned, rated) for one in planned.plans]
    heads = ["layout", "requests/s", "of the best", *(["kept at that rate", "95 % interval"] if rated else [])]
    promise = f"first token within {targets.ttft * 1000:,.0f} ms and {targets.tpot * 1000:,.1f} ms per token"
    title = f"{targets.share:.0%} of requests: {promise}"
    out.print(table(title, heads, rows))
    if best.goodput == 0:
        out.print("no layout keeps these promises at any rate; they are tighter than an unloaded machine", style="yellow")
        return
    margin = planned.margin
    if margin is not None:
        rival = margin.rival.layout.name
        out.print(f"\nmargin over the best other instances, {rival}: {margin.share:+.1%}{_doubt(margin)}", markup=False)
    out.print(f"\nrequests that keep both promises, by rate: {best.layout.name}", markup=False)
    for rate, share in best.tried:
        bar = "█" * round(share * _BAR)
        out.print(Text(f"{rate:9.2f}/s {bar:<{_BAR}} {share:6.1%}", "green" if share >= targets.share else "red"))
    out.print(f"\nheadrace serve {' '.join(settings_of(best.layout))}", style="bold", markup=False)


def _doubt(margin: Margin) -> str:
    return "" if margin.clear else " (less than the search can tell apart: the simplest is named first)"


def _row(one: Plan, best: Plan, planned: Planned, rated: dict[str, float]) -> list[str]:
    cells = [one.layout.name, number(one.goodput), f"{one.goodput / best.goodput:.0%}" if best.goodput else "–"]
    if rated:
        kept = rated[one.layout.name]
        low, high = interval(kept, planned.sample.count)
        cells += [f"{kept:.1%}", f"{low:.1%} – {high:.1%}"]
    return cells


def _document(wanted: PlanArguments, planned: Planned, rated: dict[str, float]) -> dict[str, object]:
    targets, margin = planned.targets, planned.margin
    return {
        "kind": "plan", "model": wanted.model, "requests": planned.sample.count, "seed": wanted.seed,
        "targets": {"ttft_seconds": targets.ttft, "tpot_seconds": targets.tpot, "share": targets.share},
        "margin": None if margin is None else {"over": margin.rival.layout.name, "share": margin.share, "clear": margin.clear},
        "plans": [
            {
                "layout": one.layout.name, "instances": len(one.layout.instances), "threads": one.layout.threads,
                "roles": one.layout.roles,
                "step_tokens": one.layout.step_tokens, "requests_per_second": one.goodput, "tried": one.tried,
                "kept_at_rate": rated.get(one.layout.name),
            }
            for one in planned.plans
        ],
    }  # fmt: skip
