"""Results of experiments as documents: JSON files, the results page made from them, and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headrace.evaluation.experiment import Conditions, Experiment, Findings, Series
from headrace.evaluation.load_report import import_pyplot, without_nan
from headrace.evaluation.machine import Machine
from headrace.evaluation.measures import Measure

_PAGE_HEAD = """# Results

Generated from `benchmarks/results/*.json` by `make docs`. Each table is one run of `headrace reproduce NAME`: the mechanism with
and without, interleaved in one process, on the machine named under it. Run it yourself: your machine has its own ratios.
"""


def document(
    experiment: Experiment, conditions: Conditions, findings: Findings, machine: Machine, seconds: float
) -> dict[str, Any]:
    """The JSON document of one run; numbers that could not be measured are null."""
    made = without_nan(
        {
            "kind": "experiment",
            "name": experiment.name,
            "title": experiment.title,
            "source": experiment.source,
            "quick": conditions.quick,
            "seed": conditions.seed,
            "model": conditions.model,
            "threads": conditions.threads,
            "seconds": seconds,
            "machine": asdict(machine),
            "machine_line": machine.line(),
            "items": [
                {
                    "id": claim.claim_id,
                    "what": claim.what,
                    "asked": f"{claim.relation} {claim.asked:g}",
                    "measured": claim.measured,
                    "unit": claim.unit,
                    "holds": claim.holds,
                    "note": claim.note,
                }
                for claim in findings.claims
            ],
            "series": [asdict(series) for series in findings.series],
        }
    )
    assert isinstance(made, dict)
    return made


def results_page(folder: Path) -> str:
    """The Markdown page of all result files in a folder, in order of their names."""
    parts = [_PAGE_HEAD]
    files = sorted(folder.glob("*.json"))
    if not files:
        parts.append("No result has been recorded in this revision.\n")
    for file in files:
        parts.append(_section(json.loads(file.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def _section(run: Mapping[str, Any]) -> str:
    return _SECTIONS[run["kind"]](run)


def _peers(run: Mapping[str, Any]) -> str:
    """Medians of each server, and headrace's median ratio to each other one."""
    settings, measures = run["settings"], [_measure(measure) for measure in run["measures"]]
    others = [name for name in measures[0].values if name != "headrace"]
    if settings.get("workload") == "speculation":
        lines = ["## Speculation beside other servers", ""]
        lines += ["`headrace bench peers --workload speculation`: single greedy answers to chat messages, up to "]
        lines[-1] += f"{settings['output']} tokens, {settings['threads']} threads, "
    else:
        lines = ["## Beside other servers", ""]
        lines += [
            f"`headrace bench peers`: {settings['prompt']} tokens in, {settings['output']} out, {settings['threads']} threads, "
        ]
    lines[-1] += f"medians of {settings['rounds']} rounds in turns. Peers as `benchmarks/README.md` says."
    lines[-1] += " Ratios are medians over the rounds: above 1 headrace is so many times better."
    heads = ["", "unit", "headrace", *(head for name in others for head in (name, "times better"))]
    lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for measure in measures:
        cells = [measure.what, measure.unit, _number(measure.median("headrace"))]
        for name in others:
            ratio = measure.ratio("headrace", name)
            cells += [_number(measure.median(name)), "–" if math.isnan(ratio) else f"{ratio:.2f}×"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {note}" for note in run.get("notes", ()))]
    lines += ["", f"{run['machine_line']}; model {settings['model']}.", ""]
    return "\n".join(lines)


def _measure(saved: Mapping[str, Any]) -> Measure:
    """A measure as it was before it became JSON, which has no NaN."""
    values = {name: [math.nan if value is None else value for value in row] for name, row in saved["values"].items()}
    return Measure(saved["what"], saved["unit"], values, saved.get("lower", False))


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _experiment(run: Mapping[str, Any]) -> str:
    scope = " (quick run)" if run["quick"] else ""
    lines = [f"## {run['name']}{scope}", "", f"{run['title']} Source: {run['source']}.", ""]
    lines += ["| item | asked | measured | unit | holds |", "| --- | --- | --- | --- | --- |"]
    for item in run["items"]:
        measured = "–" if item["measured"] is None else f"{item['measured']:.4g}"
        note = f" ({item['note']})" if item["note"] else ""
        lines.append(
            f"| {item['what']}{note} | {item['asked']} | {measured} | {item['unit']} | {'yes' if item['holds'] else '**no**'} |"
        )
    lines += ["", f"{run['machine_line']}; model {run['model']}, seed {run['seed']}, {run['seconds']:.0f} s.", ""]
    return "\n".join(lines)


_SECTIONS = {"experiment": _experiment, "peers": _peers}


def plot(title: str, series: Iterable[Series], file: Path) -> None:
    """Draw the series, one panel for each pair of axis labels. Raises ``invalid_setting`` without the extra ``plot``."""
    pyplot = import_pyplot()
    panels: dict[tuple[str, str], list[Series]] = {}
    for line in series:
        panels.setdefault((line.x_label, line.y_label), []).append(line)
    figure, axes = pyplot.subplots(
        1, max(1, len(panels)), figsize=(5.5 * max(1, len(panels)), 4), layout="constrained", squeeze=False
    )
    for axis, ((x_label, y_label), lines) in zip(axes[0], panels.items(), strict=False):
        for line in lines:
            axis.plot(line.x, line.y, marker=".", label=line.name)
        axis.set(xlabel=x_label, ylabel=y_label)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(file)
    pyplot.close(figure)


def plot_peers(measures: Iterable[Measure], file: Path) -> None:
    """Draw the medians of each server, one panel for each unit. Raises ``invalid_setting`` without the extra ``plot``."""
    pyplot = import_pyplot()
    panels: dict[str, list[Measure]] = {}
    for measure in measures:
        panels.setdefault(measure.unit, []).append(measure)
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(9, 2.6 * len(panels)), layout="constrained", squeeze=False)
    for axis, (unit, rows) in zip(axes[:, 0], panels.items(), strict=True):
        names = list(rows[0].values)
        for position, name in enumerate(names):
            places = [index + (position - (len(names) - 1) / 2) * 0.8 / len(names) for index in range(len(rows))]
            axis.bar(places, [measure.median(name) for measure in rows], 0.8 / len(names), label=name)
        axis.set_xticks(range(len(rows)), [measure.what for measure in rows])
        axis.set_ylabel(unit + (" (less is better)" if rows[0].lower else ""))
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(file)
    pyplot.close(figure)
