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

from headrace.engine.machine import usable_cores
from headrace.errors import HeadraceError
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, interleave
from headrace.evaluation.signature_task import Exercise, exercises
from headrace.evaluation.training_child import Order, Report
from headrace.models.catalog import find_model, open_model
from headrace.models.packages import cache_dir
from headrace.text.chat_template import ChatTemplate
from headrace.text.lessons import lesson
from headrace.text.open_tokenizer import open_tokenizer
from headrace.training.dataset_file import make_sample, write_dataset
from headrace.training.settings import TrainingSettings

_LONGEST_SECONDS = 600.0
_NEEDED = ("peft", "transformers", "torch")


def run(conditions: Conditions) -> Findings:
    """The task of ``fine_tuning``, short, with several seeds."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        message = f"the other side of this comparison is not installed: pip install {' '.join(missing)}"
        raise HeadraceError("invalid_setting", message, param="name")
    seeds, (learn, held) = (1, exercises(8, 4, conditions.seed)) if conditions.quick else (3, exercises(36, 16, conditions.seed))
    settings = TrainingSettings(
        rank=8, alpha=16.0, epochs=1, batch=2 if conditions.quick else 4, learning_rate=1e-3, max_tokens=256, seed=conditions.seed
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="experiment-", dir=cache_dir()) as name:
        folder, own, theirs = Path(name), list[Report](), list[Report]()
        for part, tasks in (("data", learn), ("held", held)):
            _write(conditions.model, folder / part, tasks)
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
    return Findings(_claims(own, theirs))


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


def _write(model: str, path: Path, tasks: list[Exercise]) -> None:
    opened = open_model(find_model(model))
    tokenizer = open_tokenizer(opened.tokenizer_source)
    template = ChatTemplate(opened.chat_template, tokenizer)
    try:
        lessons = [lesson(template, tokenizer, one.conversation, [2]) for one in tasks]
    finally:
        template.close()
    write_dataset(path, (make_sample(one.tokens, one.weights) for one in lessons), vocab=tokenizer.vocab_size)


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
