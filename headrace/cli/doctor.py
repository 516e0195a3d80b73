"""``headrace doctor``: is this machine ready, and what would make it better?"""

from __future__ import annotations

import dataclasses
import json

import click
from rich.text import Text

from headrace.cli.output import stderr, stdout, table

_COLOURS = {"ok": "green", "note": "yellow", "bad": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--quick", is_flag=True, help="Leave out the measurement of memory bandwidth.")
def doctor(quick: bool, as_json: bool) -> None:
    """Check this machine: CPU features and kernels, memory, limits, models, packages; with advice where it helps.

    Exits with 1 when something is missing without which nothing runs.
    """
    from headrace.evaluation.doctor import examine

    with stderr().status("looking"):
        findings = examine(measure=not quick)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], ensure_ascii=False))
    else:
        rows = [(Text(f.state, _COLOURS[f.state]), f.what, f.found, f.advice) for f in findings]
        stdout().print(table("", ("", "what", "found", "advice"), rows, left=4))
    if any(finding.state == "bad" for finding in findings):
        raise click.exceptions.Exit(1)
