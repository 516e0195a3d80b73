"""The same fine-tuning job here and by PEFT on transformers, each in a process of its own, in turns: speed, memory and result."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import msgspec

from headrace.engine.llm import LLM
from headrace.engine.machine import usable_cores
from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, interleave
from headrace.evaluation.experiments._fine_tuning_exam import exact_answers, write_lessons
from headrace.evaluation.signature_task import Exercise, exercises
from headrace.evaluation.training_child import PEFT_FOLDER, Order, Report
from headrace.models.packages import cache_dir
from headrace.training.settings import TrainingSettings

_LONGEST_SECONDS = 600.0
_NEEDED = ("peft", "transformers", "torch")


def run(conditions: Conditions) -> Findings:
    """The task of ``fine_tuning``, short, with several seeds."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        message = f"the other side of this comparison is not installed: pip install {' '.join(missing)}"
        raise HeadraceError("invalid_setting", message, param="name")
    seeds, (learn, held) = (1, exercises(8, 4, conditions.seed)) if conditions.quick else (3, exercises(40, 24, conditions.seed))
    settings = TrainingSettings(
        rank=8, alpha=16.0, epochs=1 if conditions.quick else 2, batch=2 if conditions.quick else 8, learning_rate=1e-3,
        max_tokens=256, seed=conditions.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="experiment-", dir=cache_dir()) as name:
        folder, own, theirs = Path(name), list[Report](), list[Report]()
        for part, tasks in (("data", learn), ("held", held)):
            write_lessons(conditions.model, folder / part, tasks)
        for seed in range(seeds):
            order = Order(
                conditions.model, conditions.threads or usable_cores(), str(folder / "data"), str(folder / "held"),
                str(folder / f"job-{seed}"), replace(settings, seed=conditions.seed + seed),
            )  # fmt: skip
            conditions.report("jobs", seed, seeds)
            path = folder / f"order-{seed}.json"
            path.write_bytes(msgspec.json.encode(order))
            found = interleave([lambda path=path: _child("own", path), lambda path=path: _child("peft", path)], 1)  # type: ignore[misc]
            own += found[0]
            theirs += found[1]
        claims = list(_claims(own, theirs))
        if not conditions.quick:
            claims.append(_exam(conditions, folder, seeds, held))
    return Findings(tuple(claims))


def _exam(conditions: Conditions, folder: Path, seeds: int, held: list[Exercise]) -> Claim:
    """Both sides' adapters, served by one engine, answer the same held-out questions."""
    with LLM(settings=EngineSettings(model=conditions.model, threads=conditions.threads)) as llm:
        before = exact_answers(llm, held, None)
        right: list[tuple[float, float]] = []
        for seed in range(seeds):
            conditions.report("asking the adapters", seed, seeds)
            last = sorted((folder / f"job-{seed}").glob("step-*"))[-1]
            sides = []
            for side, made in (("own", last), ("peft", folder / f"job-{seed}" / PEFT_FOLDER)):
                llm.register_adapter(f"{side}-{seed}", str(made))
                sides.append(exact_answers(llm, held, f"{side}-{seed}"))
            right.append((sides[0], sides[1]))
    behind = fmean(other - one for one, other in right)
    each = ", ".join(f"{one:.0f} and {other:.0f} %" for one, other in right)
    what = "held-out answers that are right to the letter, points below PEFT's adapters, both as served here"
    return Claim("exact", what, "<=", 5.0, behind, "points", f"by seeds: {each}; {before:.0f} % before; {len(held)} questions")


def _claims(own: list[Report], theirs: list[Report]) -> tuple[Claim, ...]:
    speed = median(one.tokens_per_second / other.tokens_per_second for one, other in zip(own, theirs, strict=True))
    room = median(one.peak_bytes / other.peak_bytes for one, other in zip(own, theirs, strict=True))
    held = [fmean(one.held for one in side) for side in (own, theirs)]
    each = ", ".join(f"{one.held:.3f} and {other.held:.3f}" for one, other in zip(own, theirs, strict=True))
    rates = [median(one.tokens_per_second for one in side) for side in (own, theirs)]
    peaks = [median(one.peak_bytes for one in side) / 2**20 for side in (own, theirs)]
    return (
        Claim("speed", "tokens a second, here / PEFT on transformers in fp32", ">=", 1.5, speed, "x",
              f"{rates[0]:.0f} and {rates[1]:.0f}"),
        Claim("memory", "peak memory of the process, here (with the engine that serves) / there", "<=", 0.4, room, "x",
              f"{peaks[0]:,.0f} and {peaks[1]:,.0f} MiB"),
        Claim("loss", "held-out loss after the same batches and learning rates, here / there", "<=", 1.1, held[0] / held[1], "x",
              f"by seeds of the start: {each}"),
    )  # fmt: skip


def _child(which: str, order: Path) -> Report:
    command = [sys.executable, "-m", "headrace.evaluation.training_child", which, str(order)]
    done = subprocess.run(command, capture_output=True, timeout=_LONGEST_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"the job of {which} has failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Report)


EXPERIMENT = Experiment(
    name="fine_tuning_speed",
    title="The same job here and by PEFT: tokens a second, peak memory and what was learnt.",
    source="PEFT on transformers, as their documentation shows it",
    minutes=6,
    run=run,
)
