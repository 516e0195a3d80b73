"""``headrace bench kernels``: speed, conformance and support of the native matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from headrace.cli.arguments import arguments
from headrace.cli.models import Loading
from headrace.cli.output import progress_bar, stdout, table, write_json
from headrace.evaluation.kernel_speed import KernelSettings, KernelSpeed
from headrace.evaluation.load_report import without_nan
from headrace.evaluation.machine import inspect

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("kernels")
@click.option("--json", "json_file", type=_FILE, help="Write everything that was found to this file.")
@click.option("--plot", "plot_file", type=_FILE, help="Draw a picture to this file (perf; extra `plot`).")
@arguments(KernelSettings)
def kernels(settings: KernelSettings, json_file: Path | None, plot_file: Path | None) -> None:
    """Matrix products alone: their speed, whether all instruction sets agree, and what runs here.

    \b
    headrace bench kernels                             speed against the machine's limits
    headrace bench kernels --isa all --threads 2 --rows 1 --rows 64 --json kernels.json
    headrace bench kernels --mode compare              every instruction set against the portable one, bit for bit
    headrace bench kernels --mode support              what is built, what runs, what is chosen
    headrace bench kernels --mode adapters             what low-rank adapters cost in a step of 32 rows
    """
    if plot_file is not None and settings.mode != "perf":
        raise click.UsageError("--plot draws speeds: it goes with --mode perf")
    run = {"perf": _perf, "compare": _compare, "support": _support, "adapters": _adapters}[settings.mode]
    found, failed = run(settings, plot_file)
    machine = inspect()
    stdout().print(machine.line(), style="dim")
    if json_file is not None:
        head = {"kind": "kernels", "mode": settings.mode, "machine": asdict(machine), "settings": asdict(settings)}
        write_json(json_file, without_nan(head | {"rows": found}))
    if failed:
        raise click.exceptions.Exit(1)


def _perf(settings: KernelSettings, plot_file: Path | None) -> tuple[list[Any], bool]:
    from headrace.evaluation.kernel_speed import measure, plot
    from headrace.models.catalog import find_model, open_model

    with progress_bar() as bar:
        speeds = list(measure(open_model(find_model(settings.model), Loading(bar)), settings, Loading(bar)))
    rows = [
        (
            f"{s.role} {s.columns}×{s.inputs} {s.formats}", s.isa, str(s.rows), f"{s.seconds * 1e6:,.1f}", f"{s.gmacs:,.1f}",
            f"{s.gigabytes:.2f}", s.bound, f"{s.limit:.0%}",
        )
        for s in speeds
    ]  # fmt: skip
    names = ("matrix", "instruction set", "rows", "µs", "GMAC/s", "GB/s of weights", "bound by", "of the limit")
    stdout().print(table(f"{settings.model}, {settings.threads} threads", names, rows, left=2))
    stdout().print(_worst(speeds), style="dim")
    if plot_file is not None:
        plot(speeds, plot_file)
        click.echo(f"wrote {plot_file}", err=True)
    return [asdict(speed) for speed in speeds], False


def _worst(speeds: Sequence[KernelSpeed]) -> str:
    low = min(speeds, key=lambda speed: speed.limit)
    return (
        "limit: the slower of the product instructions on registers alone and of only reading the same matrices, "
        f"measured in turns; lowest {low.limit:.0%} ({low.role}, {low.isa}, {low.rows} rows)"
    )


def _compare(settings: KernelSettings, _: Path | None) -> tuple[list[Any], bool]:
    from headrace.evaluation.kernel_conformance import compare
    from headrace.models.catalog import find_model, open_model

    with progress_bar() as bar:
        found = list(compare(open_model(find_model(settings.model), Loading(bar)), settings.panels, Loading(bar)))
    rows = []
    for isa, formats in dict.fromkeys((c.isa, c.formats) for c in found):
        cells = [c for c in found if (c.isa, c.formats) == (isa, formats)]
        counts = (len(cells), sum(c.products for c in cells), sum(c.outputs for c in cells), sum(c.mismatches for c in cells))
        rows.append((isa, formats, *(f"{count:,}" for count in counts)))
    names = ("instruction set", "format", "matrices", "products", "outputs", "mismatches")
    stdout().print(table("against the portable kernels on one thread", names, rows, left=2))
    wrong = [c for c in found if c.mismatches]
    for c in wrong:
        where = f"{c.isa}: {c.what} ({c.formats}, {c.columns}×{c.inputs})"
        stdout().print(f"{where}: {c.mismatches:,} of {c.outputs:,} outputs differ", style="red", markup=False)
    stdout().print(f"{sum(c.mismatches for c in found):,} mismatches", style="red" if wrong else "green")
    return [asdict(cell) for cell in found], bool(wrong)


def _support(settings: KernelSettings, _: Path | None) -> tuple[list[Any], bool]:
    from headrace.kernels import _native
    from headrace.kernels.formats import instruction_sets, weight_formats

    isas, rows = instruction_sets(), []
    for isa in isas:
        state = "chosen" if isa.name == _native.isa() else "runs" if isa.automatic else "runs, for tests only"
        rows.append((isa.name, "yes" if isa.compiled else "no", state if isa.runnable else isa.lacking))
    stdout().print(table("instruction sets", ("", "built", "here"), rows, left=3))
    cells = [[_native.format_unit(isa.name, name) if isa.runnable else "–" for isa in isas] for name in weight_formats()]
    units = [(name, *row) for name, row in zip(weight_formats(), cells, strict=True)]
    stdout().print(table("what multiplies each weight format", ("", *(isa.name for isa in isas)), units))
    stdout().print(f"CPU features that choose: {' '.join(_native.cpu_features()) or 'none'}", style="dim")
    return [asdict(isa) | {"chosen": isa.name == _native.isa()} for isa in instruction_sets()], False


def _adapters(settings: KernelSettings, _: Path | None) -> tuple[list[Any], bool]:
    from headrace.evaluation.adapter_speed import measure_adapters
    from headrace.models.catalog import find_model, open_model

    with progress_bar() as bar:
        found = measure_adapters(open_model(find_model(settings.model), Loading(bar)), settings.threads, Loading(bar))
    rows = [
        (
            str(s.distinct), f"{s.megabytes:,.0f}", f"{s.seconds * 1e3:.2f}", f"{s.slowdown:.2f}×",
            f"{(s.seconds - s.base_seconds) * 1e3:.2f}", f"{s.reading_seconds * 1e3:.2f}", f"{s.of_reading:.2f}×",
        )
        for s in found
    ]  # fmt: skip
    names = ("different adapters", "MB", "ms of a step", "of the base", "ms added", "ms to read them", "of reading")
    stdout().print(
        table(f"{settings.model}, {found[0].streams} rows, rank {found[0].rank}, {settings.threads} threads", names, rows)
    )
    return [asdict(s) | {"slowdown": s.slowdown, "of_reading": s.of_reading} for s in found], False
