"""Bodies, queries and answers of fine-tuning jobs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.batches import Metadata, PerPage
from headrace.server.protocol.common import Body, Name
from headrace.server.protocol.files import Id

Epochs = Annotated[int, Meta(ge=1, le=100)] | Literal["auto"]
BatchSize = Annotated[int, Meta(ge=1, le=256)] | Literal["auto"]
Rate = Annotated[float, Meta(gt=0.0, le=100.0)] | Literal["auto"]
Beta = Annotated[float, Meta(gt=0.0, le=2.0)] | Literal["auto"]
Rank = Annotated[int, Meta(ge=1, le=256)]
Alpha = Annotated[float, Meta(gt=0.0, le=4096.0)]
Target = Literal["q", "k", "v", "o", "gate", "up", "down"]


class SupervisedParameters(Body, frozen=True, kw_only=True):
    """How to learn. ``lora_*`` are extras: rank and alpha of the adapter, and the matrices that get one."""

    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: Rate = "auto"
    lora_rank: Rank | None = None
    lora_alpha: Alpha | None = None
    lora_targets: Annotated[list[Target], Meta(min_length=1, max_length=7)] | None = None


class DpoParameters(SupervisedParameters, frozen=True, kw_only=True):
    """How to learn from preferences; ``beta``: how closely to stay with the base model."""

    beta: Beta = "auto"


class SupervisedMethod(Body, frozen=True, kw_only=True):
    """Learn answers."""

    hyperparameters: SupervisedParameters | None = None


class DpoMethod(Body, frozen=True, kw_only=True):
    """Learn which of two answers is preferred."""

    hyperparameters: DpoParameters | None = None


class Method(Body, frozen=True, kw_only=True):
    """One method with its hyperparameters."""

    type: Literal["supervised", "dpo"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None
    reinforcement: None = None


class JobRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /fine_tuning/jobs``."""

    unsupported: ClassVar[dict[str, str]] = {
        "type": 'only "supervised" and "dpo"',
        "reinforcement": "there are no graders",
        "integrations": "the server tells nobody else; metrics are in the job's events and its result file",
    }

    model: Name
    training_file: Id
    validation_file: Id | None = None
    method: Method | None = None
    hyperparameters: SupervisedParameters | None = None
    suffix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")] | None = None
    seed: Annotated[int, Meta(ge=0, le=limits.MAX_SEED)] | None = None
    metadata: Metadata | None = None
    integrations: None = None


class JobQuery(Body, frozen=True, kw_only=True):
    """Which jobs to list, newest first."""

    after: Id | None = None
    limit: PerPage | None = None


class ModelDeleted(msgspec.Struct, frozen=True):
    """A fine-tuned model is gone."""

    id: str
    deleted: bool = True
    object: str = "model"


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class ShownParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """The hyperparameters of a job; with numbers for ``auto`` once its files are known."""

    n_epochs: int | str = ""
    batch_size: int | str = ""
    learning_rate_multiplier: float | str = ""
    beta: float | str | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: list[str] | None = None


class ShownMethod(msgspec.Struct, frozen=True, omit_defaults=True):
    """A method with its parameters under its own name."""

    type: str
    supervised: dict[str, ShownParameters] | None = None
    dpo: dict[str, ShownParameters] | None = None


class JobObject(msgspec.Struct, frozen=True, kw_only=True):
    """A job as clients see it. ``step`` and ``total_steps`` are extras."""

    id: str
    object: str = "fine_tuning.job"
    model: str
    status: str
    created_at: int
    training_file: str
    validation_file: str | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    seed: int
    suffix: str | None = None
    hyperparameters: ShownParameters
    method: ShownMethod
    error: JobError | None = None
    result_files: list[str] = []
    organization_id: str = "org-headrace"
    integrations: list[str] = []
    metadata: dict[str, str] | None = None
    user_provided_suffix: str | None = None
    step: int = 0
    total_steps: int | None = None


class JobList(msgspec.Struct, frozen=True):
    """A page of jobs."""

    data: list[JobObject]
    has_more: bool
    object: str = "list"


class JobEvent(msgspec.Struct, frozen=True):
    """Something that happened to a job. ``type`` ``metrics``: ``data`` has the numbers of a step, so that a page can draw them."""

    id: str
    created_at: int
    level: str
    message: str
    type: str = "message"
    data: dict[str, float | int | str | None] | None = None
    object: str = "fine_tuning.job.event"


class EventList(msgspec.Struct, frozen=True):
    """A page of events, newest first."""

    data: list[JobEvent]
    has_more: bool
    object: str = "list"


class CheckpointMetrics(msgspec.Struct, frozen=True):
    """What was measured at a checkpoint."""

    step: int
    train_loss: float
    full_valid_loss: float | None = None


class Checkpoint(msgspec.Struct, frozen=True):
    """A checkpoint, which is a model too once its job has succeeded."""

    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics
    object: str = "fine_tuning.job.checkpoint"


class CheckpointList(msgspec.Struct, frozen=True):
    """A page of checkpoints, newest first."""

    data: list[Checkpoint]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None
    object: str = "list"
