"""``headrace bench peers``: beside other servers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from headrace.cli.arguments import arguments
from headrace.cli.models import Loading
from headrace.cli.output import number, progress_bar, stdout, table, write_json
from headrace.errors import HeadraceError
from headrace.evaluation.machine import inspect
from headrace.evaluation.peers import PeerSettings, compare
from headrace.models.catalog import find_model


@click.command("peers")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write everything measured to this file."
)
@arguments(PeerSettings)
def peers(settings: PeerSettings, json_file: Path | None) -> None:
    """Load headrace and other servers in turns, on the same model file, and print the ratios.

    \b
    headrace bench peers --peer llama.cpp=/path/to/llama-server
    headrace bench peers --peer llama.cpp=peers/bin/python --streams 1 --streams 32 --json peers.json
    """
    model_file = find_model(settings.model).path
    if model_file is None:
        raise HeadraceError(
            "model_not_found", f"{settings.model} is not on this machine yet: `headrace pull {settings.model}` gets it"
        )
    with progress_bar() as bar:
        measures = compare(settings, model_file, Loading(bar))
    names = list(measures[0].values)
    rows = []
    for measure in measures:
        cells = [number(measure.median("headrace"))]
        for name in names[1:]:
            cells += [number(measure.median(name)), f"{measure.ratio('headrace', name):.2f}×"]
        rows.append((measure.what, measure.unit, *cells))
    heads = ["", "unit", "headrace"]
    for name in names[1:]:
        heads += [name, "headrace / it"]
    title = f"{settings.prompt} tokens in, {settings.output} out, {settings.threads} threads, medians of {settings.rounds}"
    machine = inspect()
    stdout().print(table(title, tuple(heads), rows, left=2))
    stdout().print(machine.line(), style="dim")
    if json_file is not None:
        document = {
            "kind": "peers",
            "machine": asdict(machine),
            "machine_line": machine.line(),
            "settings": asdict(settings) | {"peer": names[1:]},
        }
        write_json(json_file, document | {"measures": [asdict(measure) for measure in measures]})
