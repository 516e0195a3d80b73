"""``headrace bench peers``: beside other servers."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import click

from headrace.cli.arguments import arguments
from headrace.cli.models import Loading
from headrace.cli.output import number, progress_bar, stdout, table, write_json
from headrace.errors import HeadraceError
from headrace.evaluation.load_report import without_nan
from headrace.evaluation.machine import inspect
from headrace.evaluation.measures import OWN, Comparison
from headrace.evaluation.peers import PeerSettings, compare
from headrace.evaluation.results import plot_peers
from headrace.models.catalog import find_model

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("peers")
@click.option("--json", "json_file", type=_FILE, help="Write everything measured to this file.")
@click.option("--plot", "plot_file", type=_FILE, help="Draw a picture to this file (extra `plot`).")
@arguments(PeerSettings)
def peers(settings: PeerSettings, json_file: Path | None, plot_file: Path | None) -> None:
    """Load headrace and other servers in turns, on the same model file, and print how many times better headrace is.

    \b
    headrace bench peers --peer llama.cpp=/path/to/llama-server
    headrace bench peers --peer llama.cpp=peers/bin/python --streams 1 --streams 32 --json peers.json
    headrace bench peers --workload speculation --output 96 --peer "lookup=/path/to/llama-server --spec-type ngram-simple"
    headrace bench peers --peer "fa=/path/to/llama-server -fa on" --peer openvino-genai=ov/bin/python --plot peers.png
    """
    model_file = find_model(settings.model).path
    if model_file is None:
        raise HeadraceError(
            "model_not_found", f"{settings.model} is not on this machine yet: `headrace pull {settings.model}` gets it"
        )
    with progress_bar() as bar:
        found = compare(settings, model_file, Loading(bar))
    names, machine = list(found.measures[0].values), inspect()
    _print(settings, found, names)
    stdout().print(machine.line(), style="dim")
    if json_file is not None:
        document = {
            "kind": "peers",
            "machine": asdict(machine),
            "machine_line": machine.line(),
            "settings": asdict(settings) | {"peer": names[1:]},
            "notes": found.notes,
        }
        write_json(json_file, without_nan(document | {"measures": [asdict(measure) for measure in found.measures]}))
    if plot_file is not None:
        plot_peers(found.measures, plot_file)
        click.echo(f"wrote {plot_file}", err=True)


def _print(settings: PeerSettings, found: Comparison, names: list[str]) -> None:
    rows = []
    for measure in found.measures:
        cells = [number(measure.median(OWN))]
        for name in names[1:]:
            cells += [number(measure.median(name)), _times(measure.ratio(OWN, name))]
        rows.append((measure.what, measure.unit, *cells, *([_times(measure.lead())] if len(names) > 2 else [])))
    heads = ["", "unit", OWN]
    for name in names[1:]:
        heads += [name, "times better"]
    heads += ["than the best"] if len(names) > 2 else []
    load = "chats of up to" if settings.workload == "speculation" else f"{settings.prompt} tokens in,"
    title = f"{load} {settings.output} out, {settings.threads} threads, medians of {settings.rounds}"
    stdout().print(table(title, tuple(heads), rows, left=2))
    for note in found.notes:
        stdout().print(note, style="yellow", markup=False)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×" if math.isfinite(ratio) else "–"
