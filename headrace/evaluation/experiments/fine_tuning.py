"""Fine-tuning that is good for something: an extraction task from real text, before and after, and the same seed twice."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace.engine.llm import LLM
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.training_wire import StartTraining, TrainingCheckpoint, TrainingEnded, TrainingProgress
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, Series
from headrace.evaluation.signature_task import Exercise, exercises
from headrace.models.catalog import find_model, open_model
from headrace.models.packages import cache_dir
from headrace.text.chat_template import ChatTemplate
from headrace.text.lessons import Lesson, lesson
from headrace.training.dataset_file import make_sample, write_dataset
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
        lessons = _write(llm, conditions.model, folder / "train", learn), _write(llm, conditions.model, folder / "held", held)
        conditions.report("asking the base model", 0, 4)
        before = _loss(llm, lessons[1], None), _exact(llm, held, None)
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
        after = _loss(llm, lessons[1], _NAME), _exact(llm, held, _NAME)
        conditions.report("training again", 3, 4)
        short = TrainingSettings(rank=8, epochs=1, batch=8, max_tokens=256, seed=conditions.seed)
        same = None
        if not conditions.quick:
            _write(llm, conditions.model, folder / "train", learn[:_FEW])
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


def _write(llm: LLM, model: str, path: Path, tasks: Sequence[Exercise]) -> list[Lesson]:
    template = ChatTemplate(open_model(find_model(model)).chat_template, llm.tokenizer)
    try:
        lessons = [lesson(template, llm.tokenizer, one.conversation, [2]) for one in tasks]
    finally:
        template.close()
    write_dataset(path, (make_sample(one.tokens, one.weights) for one in lessons), vocab=llm.tokenizer.vocab_size)
    return lessons


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


def _loss(llm: LLM, lessons: Sequence[Lesson], adapter: str | None) -> float:
    """Mean loss of the learnt tokens, as requests see it."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    found = llm.generate([one.tokens for one in lessons], params, adapters=adapter)
    total, count = 0.0, 0
    for generation, one in zip(found, lessons, strict=True):
        assert generation.prompt_logprobs is not None
        for logprob, weight in zip(generation.prompt_logprobs, one.weights[1:], strict=True):
            total -= logprob.logprob * weight
            count += weight > 0
    return total / count


def _exact(llm: LLM, tasks: Sequence[Exercise], adapter: str | None) -> float:
    """Answers that are right to the letter, in %."""
    params = SamplingParams(max_tokens=40, temperature=0.0)
    found = llm.generate([llm.render(one.question) for one in tasks], params, adapters=adapter)
    right = sum(generation.answers[0].text.strip() == one.answer for generation, one in zip(found, tasks, strict=True))
    return 100 * right / len(tasks)


EXPERIMENT = Experiment(
    name="fine_tuning",
    title="A small model learns to take names out of source lines, on the engine that serves it.",
    source="LoRA: Low-Rank Adaptation of Large Language Models; FlexLLM",
    minutes=6,
    run=run,
)
