"""``headrace reproduce``: run an experiment and say what holds on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.text import Text

from headrace.cli.arguments import arguments
from headrace.cli.models import Loading
from headrace.cli.output import number, progress_bar, stdout, table, write_json
from headrace.errors import HeadraceError
from headrace.evaluation.experiment import Conditions, Experiment, Findings
from headrace.evaluation.experiments import find, names
from headrace.evaluation.machine import inspect
from headrace.settings.declaration import option, validate

_FILE = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True, slots=True)
class ReproduceArguments:
    """What a run depends on."""

    model: str = option("smollm2", help="Model to measure with.")
    threads: int | None = option(None, minimum=1, maximum=256, help="Compute threads; none: all cores of this process.")
    seed: int = option(0, minimum=0, maximum=2**63 - 1, help="Seed of the workload.")
    quick: bool = option(False, help="The same items on less work, in under 60 s.")

    def __post_init__(self) -> None:
        validate(self)


@click.command()
@click.argument("name", required=False)
@click.option("--list", "list_only", is_flag=True, help="List the experiments.")
@click.option("--json", "json_file", type=_FILE, help="Write the result to this file.")
@click.option("--plot", "plot_file", type=_FILE, help="Draw a picture to this file (extra `plot`).")
@arguments(ReproduceArguments)
def reproduce(
    wanted: ReproduceArguments, name: str | None, list_only: bool, json_file: Path | None, plot_file: Path | None
) -> None:
    """Measure a mechanism with and without, interleaved on the same engine and workload, and compare with what was asked of it.

    Exits with 1 when an item does not hold here.

    \b
    headrace reproduce --list
    headrace reproduce determinism --quick
    headrace reproduce fastgen --json fastgen.json --plot fastgen.png
    """
    if list_only or name is None:
        rows = [(e.name, f"{e.minutes:g} min", e.title, e.source) for e in (find(known) for known in names())]
        stdout().print(table("", ("name", "length", "what is measured", "mechanism from"), rows, left=4))
        return
    experiment, machine = find(name), inspect()
    with progress_bar() as bar:
        conditions = Conditions(wanted.quick, wanted.seed, wanted.model, wanted.threads, Loading(bar))
        started = time.perf_counter()
        findings = experiment.run(conditions)
        seconds = time.perf_counter() - started
    _print(experiment, findings)
    stdout().print(f"{machine.line()}; model {wanted.model}, seed {wanted.seed}, {seconds:.0f} s", style="dim")
    if json_file is not None:
        from headrace.evaluation.results import document

        write_json(json_file, document(experiment, conditions, findings, machine, seconds))
    if plot_file is not None:
        _plot(experiment, findings, plot_file)
    if not all(claim.holds for claim in findings.claims):
        raise click.exceptions.Exit(1)


def _print(experiment: Experiment, findings: Findings) -> None:
    rows = [
        (claim.what + (f" ({claim.note})" if claim.note else ""), claim.unit, f"{claim.relation} {number(claim.asked)}",
         number(claim.measured), Text("yes", "green") if claim.holds else Text("no", "red"))
        for claim in findings.claims
    ]  # fmt: skip
    title = f"{experiment.name}: {experiment.title}"
    stdout().print(table(title, ("item", "unit", "asked", "measured", "holds"), rows, left=2))


def _plot(experiment: Experiment, findings: Findings, file: Path) -> None:
    from headrace.evaluation.results import plot

    if not findings.series:
        raise HeadraceError("invalid_setting", f"'{experiment.name}' has nothing to plot", param="plot")
    plot(experiment.title, findings.series, file)
    click.echo(f"wrote {file}", err=True)
