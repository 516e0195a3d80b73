"""``headrace bench soak``: a server under a mixed load for long, and whether everything held."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.progress import Progress
from rich.text import Text

from headrace.cli.arguments import arguments
from headrace.cli.output import number, progress_bar, stdout, table, write_json
from headrace.evaluation.machine import inspect
from headrace.evaluation.soak.run import SoakResult, SoakSettings

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("soak")
@click.option("--json", "json_file", type=_FILE, help="Write everything that was found to this file.")
@arguments(SoakSettings)
def soak(settings: SoakSettings, json_file: Path | None) -> None:
    """Load a server of its own with requests of all kinds while others leave, train, load adapters and send nonsense.

    Each answer is compared bit for bit with the one that was given before the load. Exits with 1 when an invariant did not hold.

    \b
    headrace bench soak --minutes 30 --json soak.json
    headrace bench soak --minutes 2 --people 40 --pool-mib 64 --seed 7
    """
    from headrace.evaluation.soak.report import checks, document
    from headrace.evaluation.soak.run import soak as run

    with progress_bar() as bar:
        result = run(settings, _Line(bar))
    found, machine = checks(result), inspect()
    rows = [
        (
            one.what,
            f"{number(one.found)} {one.unit}".rstrip(),
            number(one.allowed),
            Text("yes", "green") if one.holds else Text("no", "red"),
        )
        for one in found
    ]
    stdout().print(table(_title(settings, result), ("invariant", "found", "allowed", "holds"), rows))
    for what, told in (("wrong", result.wrong), ("lost", result.lost), ("fault", result.faults), ("left over", result.left_over)):
        for line in told[:5]:
            stdout().print(f"{what}: {line}", style="yellow", markup=False)
    stdout().print(f"{machine.line()}; model {settings.model}, seed {settings.seed}", style="dim")
    if json_file is not None:
        write_json(json_file, document(settings, result) | {"machine": asdict(machine), "machine_line": machine.line()})
    if not all(one.holds for one in found):
        raise click.exceptions.Exit(1)


class _Line:
    """A bar over the time, with what was done so far."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)

    def __call__(self, what: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=what, completed=done, total=total)


def _title(settings: SoakSettings, result: SoakResult) -> str:
    done, acts = sum(result.answered.values()), sum(result.acts.values())
    tokens = result.metrics.get("headrace_generated_tokens_total", 0.0)
    length, counts = f"{result.seconds / 60:.1f} min", f"{done:,} answers compared, {acts:,} disturbances"
    return f"{length}, {counts}, {tokens:,.0f} tokens, {result.rests} rests"
