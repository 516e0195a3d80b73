"""``headrace bench``: measure a server, the engine or the kernels."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import click
from rich.progress import Progress

from headrace.cli.arguments import arguments
from headrace.cli.bench_kernels import kernels
from headrace.cli.bench_peers import peers
from headrace.cli.bench_soak import soak
from headrace.cli.local import one_engine, prepare
from headrace.cli.models import Loading
from headrace.cli.options import LOCAL_SETTINGS, settings_options
from headrace.cli.output import number, progress_bar, stdout, table, write_json
from headrace.evaluation.engine_speed import Speed, SpeedSettings, SpeedTest
from headrace.evaluation.load import LoadResult, LoadRun, LoadSettings, Record
from headrace.evaluation.load_report import LoadReport, as_json, latency_rows, plot, report, without_nan
from headrace.evaluation.machine import Machine, inspect, read_bandwidth
from headrace.scheduling.settings import SchedulingSettings
from headrace.settings.sources import Effective

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def bench() -> None:
    """Measure a server, the engine or the kernels.

    \b
    headrace bench serve --rate 2            load a running server
    headrace bench engine                    speed without HTTP
    headrace bench kernels                   matrix products alone, and whether all kernels agree
    headrace bench peers --peer NAME=WHERE   beside other servers, in turns
    headrace bench soak                      a server under a mixed load for long, each answer compared
    """


bench.add_command(kernels)
bench.add_command(peers)
bench.add_command(soak)


@bench.command("serve")
@click.option("--json", "json_file", type=_FILE, help="Write everything that was measured to this file.")
@click.option("--plot", "plot_file", type=_FILE, help="Draw a picture to this file (extra `plot`).")
@arguments(LoadSettings)
def serve(settings: LoadSettings, json_file: Path | None, plot_file: Path | None) -> None:
    """Load any OpenAI-compatible server and report what its clients would feel.

    \b
    headrace bench serve --concurrency 8 --requests 64
    headrace bench serve --rate 2 --arrival-shape 0.5 --prompt lognormal:200:0.8 --output 64
    headrace bench serve --url http://127.0.0.1:9000 --rate 4 --prefix-tokens 200 --json load.json
    """
    with progress_bar() as bar:
        result = asyncio.run(LoadRun(settings, _Ticker(bar, settings.requests)).run())
    found, machine = report(result), inspect()
    _print_load(result, found, machine)
    if json_file is not None:
        write_json(json_file, as_json(result, found, machine))
    if plot_file is not None:
        plot(result, plot_file)
        click.echo(f"wrote {plot_file}", err=True)
    if not found.finished:
        raise click.exceptions.Exit(1)


@bench.command("engine")
@click.option("--json", "json_file", type=_FILE, help="Write everything that was measured to this file.")
@arguments(SpeedSettings)
@settings_options(*LOCAL_SETTINGS)
def engine(effective: Effective, settings: SpeedSettings, json_file: Path | None) -> None:
    """Speed without HTTP: tokens/s, GB/s, and the share of the memory bandwidth that this machine shows right now.

    \b
    headrace bench engine
    headrace bench engine --batches 1 --batches 16 --prompts 1024 --tokens 128 --threads 1
    """
    from headrace.engine.build import BuildOptions, build_engine

    engine_settings = one_engine(effective)
    prepare(engine_settings.model)
    built = build_engine(engine_settings, BuildOptions(effective.of(SchedulingSettings)))
    try:
        with progress_bar() as bar:
            bandwidth = read_bandwidth(built.threads)
            speeds = SpeedTest(built, settings, Loading(bar)).run()
            bandwidth = max(bandwidth, read_bandwidth(built.threads))
    finally:
        built.close()
    machine = inspect()
    _print_speeds(f"{built.model.name}, {built.threads} threads", speeds, bandwidth)
    stdout().print(f"memory reads at {bandwidth:.1f} GB/s here (best before and after)\n{machine.line()}", style="dim")
    if json_file is not None:
        document = {
            "kind": "engine",
            "machine": asdict(machine),
            "bandwidth": bandwidth,
            "speeds": [asdict(speed) for speed in speeds],
        }
        write_json(json_file, without_nan(document | {"model": built.model.name, "threads": built.threads}))


def _print_speeds(title: str, speeds: list[Speed], bandwidth: float) -> None:
    rows = []
    for speed in speeds:
        rate = speed.bytes_per_second / 1e9
        spread = f"{number(speed.lowest)} – {number(speed.highest)}"
        rows.append((speed.what, number(speed.median), spread, f"{rate:.2f}", f"{rate / bandwidth:.0%}", f"{speed.overhead:.1%}"))
    stdout().print(table(title, ("", "tok/s", "lowest – highest", "GB/s", "of bandwidth", "overhead"), rows))


class _Ticker:
    """Moves the bar on with every record and keeps the rate in its label."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("sending", total=total)
        self._failed = self._tokens = 0

    def __call__(self, record: Record) -> None:
        self._failed += bool(record.failure)
        self._tokens += record.output_tokens
        ended = max(record.sent + record.total, 1e-9)
        text = f"{self._tokens / ended:,.0f} tok/s" + (f", {self._failed} failed" if self._failed else "")
        self._bar.update(self._task, advance=1, description=text)


def _print_load(result: LoadResult, found: LoadReport, machine: Machine) -> None:
    settings, console = result.settings, stdout()
    loop = f"{settings.rate:g} requests/s (shape {settings.arrival_shape:g})" if settings.rate else f"{settings.clients} clients"
    title = f"{result.model} at {settings.url}: {found.requests} requests, {loop}, {found.seconds:.1f} s"
    rows = [
        (what, unit, *(number(v) for v in (s.p50, s.p90, s.p95, s.p99, s.mean, s.maximum))) for what, unit, s in latency_rows(found)
    ]
    console.print(table(title, ("", "unit", "p50", "p90", "p95", "p99", "mean", "max"), rows, left=2))
    console.print(f"finished {found.finished} of {found.requests}: {number(found.request_rate)} requests/s, ", end="")
    console.print(f"{number(found.output_rate)} output tok/s, {number(found.prompt_rate)} prompt tok/s")
    promise = f"first token within prompt/{settings.prompt_rate:g} s, then never below {settings.stream_rate:g} tok/s"
    console.print(
        f"effective throughput {number(found.effective_throughput)} requests/s: {found.kept_promise:.0%} kept it ({promise})"
    )
    for kind, count in sorted(found.failures.items()):
        detail = next(record.detail for record in result.records if record.failure == kind)
        console.print(f"failed {count}: {detail or kind}", style="red", markup=False)
    if found.late.count and found.late.p99 > 50:
        console.print(
            f"the client was late itself (p99 {number(found.late.p99)} ms): the load was lighter than asked", style="yellow"
        )
    console.print(f"{machine.line()}, seed {settings.seed}", style="dim")
