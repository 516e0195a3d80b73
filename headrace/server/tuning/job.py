"""One fine-tuning job as it is kept, and what its hyperparameters come to."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from headrace.errors import HeadraceError
from headrace.server.identity import new_id
from headrace.server.protocol.tuning import (
    Checkpoint,
    DpoParameters,
    JobObject,
    JobRequest,
    ShownMethod,
    ShownParameters,
    SupervisedParameters,
)
from headrace.server.sampling import new_seed
from headrace.training.dataset_file import DatasetInfo
from headrace.training.settings import TrainingSettings

ENDED = frozenset({"succeeded", "failed", "cancelled"})
LEARNING_RATE = 2e-4
"""What the multiplier 1 stands for with supervised learning."""

DPO_LEARNING_RATE = 2e-5
_RANK = 16
_AUTO_STEPS = 60  # that few samples shall still give
_MOST_AUTO_EPOCHS = 10
_ROOM = 256  # tokens of a pack, unless a sample is longer: more would take more memory and save no time


class Job(msgspec.Struct, frozen=True):
    """``parameters``: those of both methods, of which ``pairs`` tells the one.

    ``settings`` are known when the files have been looked at. ``attempts``: engines that ended while it ran, in a row.
    """

    shown: JobObject
    tenant: str
    parameters: DpoParameters
    pairs: bool
    settings: TrainingSettings | None = None
    checkpoints: list[Checkpoint] = []
    folder: str | None = None
    attempts: int = 0

    @property
    def id(self) -> str:
        """The job's name."""
        return self.shown.id

    @property
    def status(self) -> str:
        """Its state."""
        return self.shown.status


def new_job(body: JobRequest, base: str, tenant: str) -> Job:
    """A job that has just been asked for. Raises ``invalid_value`` for parameters that say two things."""
    pairs = body.method is not None and body.method.type == "dpo"
    parameters = _parameters(body, pairs)
    seed = body.seed if body.seed is not None else new_seed() % 2**31
    shown = _shown_parameters(parameters, pairs)
    job_object = JobObject(
        id=new_id("ftjob"), model=base, status="validating_files", created_at=int(time.time()), training_file=body.training_file,
        validation_file=body.validation_file, seed=seed, suffix=body.suffix, user_provided_suffix=body.suffix,
        hyperparameters=shown, method=_method(pairs, shown), metadata=body.metadata,
    )  # fmt: skip
    return Job(job_object, tenant, parameters, pairs)


def changed(job: Job, **fields: Any) -> Job:
    """The job with other fields for clients."""
    return msgspec.structs.replace(job, shown=msgspec.structs.replace(job.shown, **fields))


def model_name(job: Job) -> str:
    """What requests call the finished model."""
    base = "".join(character if character.isalnum() or character in "._-" else "-" for character in job.shown.model[:40])
    return f"ft:{base}:{job.shown.suffix or ''}:{job.id.rpartition('-')[2][:8]}"


def resolved(job: Job, info: DatasetInfo, longest: int) -> Job:
    """The job with numbers for all that was ``auto``."""
    given = job.parameters
    batch = given.batch_size if isinstance(given.batch_size, int) else max(1, min(16, info.samples // 20))
    steps = max(1, -(-info.samples // batch))
    epochs = given.n_epochs if isinstance(given.n_epochs, int) else max(2, min(_MOST_AUTO_EPOCHS, -(-_AUTO_STEPS // steps)))
    multiplier = float(given.learning_rate_multiplier) if given.learning_rate_multiplier != "auto" else 1.0
    beta = given.beta if not isinstance(given.beta, str) else 0.1
    rank = given.lora_rank or _RANK
    plain: dict[str, Any] = {"targets": tuple(given.lora_targets)} if given.lora_targets else {}
    settings = TrainingSettings(
        method="dpo" if job.pairs else "sft", rank=rank, alpha=given.lora_alpha or 2.0 * rank, epochs=epochs, batch=batch,
        beta=beta, learning_rate=multiplier * (DPO_LEARNING_RATE if job.pairs else LEARNING_RATE), max_tokens=max(_ROOM, longest),
        seed=job.shown.seed, **plain,
    )  # fmt: skip
    shown = ShownParameters(
        epochs, batch, multiplier, beta if job.pairs else None, rank, settings.alpha, sorted(settings.targets)
    )  # fmt: skip
    fresh = changed(job, hyperparameters=shown, method=_method(job.pairs, shown), total_steps=epochs * steps)
    return msgspec.structs.replace(fresh, settings=settings)


def _parameters(body: JobRequest, pairs: bool) -> DpoParameters:
    method = body.method
    if method is not None and body.hyperparameters is not None:
        message = "'hyperparameters' and 'method' say the same thing; give the method alone."
        raise HeadraceError("invalid_value", message, param="hyperparameters")
    if method is None:
        return _as_both(body.hyperparameters)
    own, other = (method.dpo, method.supervised) if pairs else (method.supervised, method.dpo)
    if other is not None:
        name = "supervised" if pairs else "dpo"
        raise HeadraceError("invalid_value", f"'method.{name}' does not go with the type '{method.type}'.", param=f"method.{name}")
    return _as_both(own.hyperparameters if own is not None else None)


def _as_both(given: SupervisedParameters | None) -> DpoParameters:
    return (
        given if isinstance(given, DpoParameters) else DpoParameters(**(msgspec.structs.asdict(given) if given is not None else {}))
    )


def _shown_parameters(given: DpoParameters, pairs: bool) -> ShownParameters:
    return ShownParameters(
        given.n_epochs, given.batch_size, given.learning_rate_multiplier, given.beta if pairs else None,
        given.lora_rank, given.lora_alpha, list(given.lora_targets) if given.lora_targets is not None else None,
    )  # fmt: skip


def _method(pairs: bool, shown: ShownParameters) -> ShownMethod:
    kind = "dpo" if pairs else "supervised"
    return ShownMethod(kind, **{kind: {"hyperparameters": shown}})
