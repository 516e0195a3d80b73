"""Fine-tuning that is good for something: an extraction task from real text, before and after, and the same seed twice."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from headrace.engine.llm import LLM
from headrace.engine.settings import EngineSettings
from headrace.engine.training_wire import StartTraining, TrainingCheckpoint, TrainingEnded, TrainingProgress
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, Series
from headrace.evaluation.experiments._fine_tuning_exam import exact_answers, held_out_loss, write_lessons
from headrace.evaluation.signature_task import exercises
from headrace.models.packages import cache_dir
from headrace.training.settings import TrainingSettings

_NAME = "signatures"
_FEW = 16  # samples of the jobs that are only compared


@dataclass(slots=True)
class _Trained:
    """What a job told. ``weights``: the bytes of its adapter's file."""

    losses: list[float] = field(default_factory=list)
    validation: float = math.nan
    folder: str = ""
    weights: bytes = b""


def run(conditions: Conditions) -> Findings:
    """Train on functions of one part of Python's library, ask about those of another."""
    learn, held = exercises(48, 16, conditions.seed) if conditions.quick else exercises(160, 60, conditions.seed)
    settings = EngineSettings(model=conditions.model, threads=conditions.threads)
    with LLM(settings=settings) as llm, tempfile.TemporaryDirectory(prefix="experiment-", dir=cache_dir()) as name:
        folder = Path(name)
        lessons = write_lessons(conditions.model, folder / "train", learn), write_lessons(conditions.model, folder / "held", held)
        conditions.report("asking the base model", 0, 4)
        before = held_out_loss(llm, lessons[1], None), exact_answers(llm, held, None)
        conditions.report("training", 1, 4)
        plan = TrainingSettings(
            rank=8,
            alpha=16.0,
            epochs=2 if conditions.quick else 3,
            batch=8,
            learning_rate=1e-3,
            max_tokens=256,
            seed=conditions.seed,
        )
        made = _train(llm, plan, folder, "first")
        llm.register_adapter(_NAME, made.folder)
        conditions.report("asking the adapter", 2, 4)
        after = held_out_loss(llm, lessons[1], _NAME), exact_answers(llm, held, _NAME)
        conditions.report("training again", 3, 4)
        short = TrainingSettings(rank=8, epochs=1, batch=8, max_tokens=256, seed=conditions.seed)
        same = None
        if not conditions.quick:
            write_lessons(conditions.model, folder / "train", learn[:_FEW])
            same = _train(llm, short, folder, "a").weights == _train(llm, short, folder, "b").weights
    return Findings(_claims(before, after, made, len(held), same), (_series(made),))


def _claims(
    before: tuple[float, float], after: tuple[float, float], made: _Trained, held: int, same: bool | None
) -> tuple[Claim, ...]:
    told = f"{before[0]:.3f} → {after[0]:.3f} nats a token"
    gap = abs(made.validation - after[0]) / after[0]
    claims = [
        Claim("loss", "held-out loss of answers, with the adapter / without", "<=", 0.5, after[0] / before[0], "", told),
        Claim("exact", "held-out answers that are right to the letter, with the adapter", ">=", 50.0, after[1], "%",
              f"{before[1]:.0f} % without; {held} functions of other modules"),
        Claim("served", "held-out loss as served, against the one that training told", "<=", 5.0, 100 * gap, "% apart",
              f"{after[0]:.4f} and {made.validation:.4f}"),
    ]  # fmt: skip
    if same is not None:
        claims.append(Claim("same", "adapters of the same seed and file", "==", 1, float(same), "same bits", ""))
    return tuple(claims)


def _series(made: _Trained) -> Series:
    steps = tuple(float(step) for step in range(1, len(made.losses) + 1))
    return Series("training", "step", "loss", steps, tuple(made.losses))


def _train(llm: LLM, settings: TrainingSettings, folder: Path, job: str) -> _Trained:
    made = _Trained()
    start = StartTraining(job, settings, str(folder / "train"), str(folder / job), str(folder / "held"))
    for event in llm.train(start):
        match event:
            case TrainingProgress():
                made.losses.append(event.loss)
            case TrainingCheckpoint():
                made.validation = event.validation_loss if event.validation_loss is not None else math.nan
            case TrainingEnded():
                if event.status != "succeeded" or event.folder is None:
                    raise RuntimeError(f"the job has {event.status}: {event.error}")
                made.folder = event.folder
    made.weights = (Path(made.folder) / "adapter_model.safetensors").read_bytes()
    return made


EXPERIMENT = Experiment(
    name="fine_tuning",
    title="A small model learns to take names out of source lines, on the engine that serves it.",
    source="LoRA: Low-Rank Adaptation of Large Language Models; FlexLLM",
    minutes=6,
    run=run,
)
