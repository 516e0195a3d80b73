"""Messages about fine-tuning jobs between the API process and the engine process."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.training.settings import TrainingSettings

TrainingStatus = Literal["succeeded", "failed", "cancelled", "paused"]


class StartTraining(msgspec.Struct, tag="start_training", frozen=True):
    """Start a job, or go on with it where its ``folder`` has checkpoints: the result is the same bits.

    ``job``: any name that no running job has. ``data``, ``validation``: files of :mod:`headrace.training.dataset_file`. ``weight``
    (1 … 1000): its part of the time that training gets, beside other jobs. ``publish``: a name under which the engine serves
    each checkpoint's adapter from then on; requests under way keep the one they began with. ``tenant`` is told in the log only.
    ``base_model``: the name that the adapter's file gives its base. Answered by events, of which TrainingEnded is the last.
    """

    job: str
    settings: TrainingSettings
    data: str
    folder: str
    validation: str | None = None
    tenant: str = ""
    weight: int = 1
    publish: str | None = None
    base_model: str = ""


class StopTraining(msgspec.Struct, tag="stop_training", frozen=True):
    """End a job. ``pause`` writes a checkpoint first, from which it can go on; ``cancel`` writes nothing.

    Unknown jobs are ignored.
    """

    job: str
    how: Literal["pause", "cancel"]


class TrainingProgress(msgspec.Struct, tag="training_progress", frozen=True):
    """An optimiser step is over. ``step`` counts from 1; ``tokens``: learnt from so far, in all epochs; ``loss``: of this step."""

    job: str
    step: int
    steps: int
    epoch: float
    loss: float
    validation_loss: float | None
    tokens: int
    tokens_per_second: float
    learning_rate: float
    gradient_norm: float


class TrainingCheckpoint(msgspec.Struct, tag="training_checkpoint", frozen=True):
    """A checkpoint has come to the disk: ``folder`` is an adapter that PEFT opens. The oldest ones are deleted."""

    job: str
    step: int
    folder: str
    loss: float
    validation_loss: float | None


class TrainingEnded(msgspec.Struct, tag="training_ended", frozen=True):
    """The last word about a job. ``folder``: its last checkpoint; ``code``, ``error``: why it failed."""

    job: str
    status: TrainingStatus
    step: int
    folder: str | None
    code: str = ""
    error: str = ""


class TrainingGauges(msgspec.Struct, frozen=True):
    """Fine-tuning. ``jobs`` and ``pages`` (of the pool, held by jobs) go up and down; ``seconds`` (spent in units), ``units``,
    ``tokens``, ``steps`` (of optimisers) and ``beside`` (units that ran between steps that streams waited for) only grow.
    ``backbone_bytes``: of the weights, as they are served and outside of the pool, while there are jobs."""

    jobs: int = 0
    pages: int = 0
    backbone_bytes: int = 0
    units: int = 0
    beside: int = 0
    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0


TrainingCall = StartTraining | StopTraining
TrainingEvent = TrainingProgress | TrainingCheckpoint | TrainingEnded
