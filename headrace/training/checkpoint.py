"""Checkpoints of a job: folders that PEFT opens, with all that the job needs to go on as if it had never stopped.

A checkpoint appears whole or not at all: it is made under another name, brought to the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.models.adapter_file import write_adapter
from headrace.models.safetensors_file import StoredTensor, open_safetensors, read_metadata
from headrace.models.safetensors_writer import write_safetensors
from headrace.training.arithmetic import Floats
from headrace.training.optimiser import AdamW
from headrace.training.parameters import Parameters
from headrace.training.settings import TrainingSettings

STATE = "training_state.safetensors"
_NAME = re.compile(r"step-(\d{8})")
_PARTIAL = ".partial-"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is, beside its numbers. ``tokens``: learnt from so far. ``base_model`` and ``samples`` must stay the same."""

    step: int
    tokens: int
    loss: float
    validation_loss: float | None
    base_model: str
    samples: int


def save_checkpoint(folder: Path, parameters: Parameters, optimiser: AdamW, settings: TrainingSettings, progress: Progress) -> Path:
    """Write a checkpoint of ``progress.step`` under ``folder``. Raises OSError, and leaves what was there."""
    final = folder / f"step-{progress.step:08d}"
    made = folder / f"{_PARTIAL}{final.name}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        write_adapter(made, parameters.adapter(progress.base_model))
        arrays = {"values": parameters.values, "first": optimiser.first, "second": optimiser.second}
        told = {"version": _VERSION, "settings": _settings_fields(settings), "progress": asdict(progress)}
        write_safetensors(made / STATE, arrays, {"training": json.dumps(told)})
        for path in made.iterdir():
            _to_disk(path)
        _to_disk(made)
        if final.exists():
            shutil.rmtree(final)
        made.rename(final)
        _to_disk(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return final


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) is not None]
    return sorted((int(match[1]), path) for match, path in found)


def prune(folder: Path, kept: int, spared: set[Path]) -> None:
    """Delete all but the last ``kept`` checkpoints, and those that are ``spared``."""
    for _, path in checkpoints(folder)[:-kept]:
        if path not in spared:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(path: Path, parameters: Parameters, optimiser: AdamW, settings: TrainingSettings) -> Progress:
    """Take the numbers of a checkpoint over. Raises ``invalid_value`` for one of another job, ``model_file`` for a damaged one."""
    tensors, metadata = open_safetensors(path / STATE), read_metadata(path / STATE)
    try:
        told = json.loads(metadata["training"])
        progress = Progress(**told["progress"])
        version, own = told["version"], told["settings"]
    except (KeyError, TypeError, ValueError) as error:
        raise HeadraceError("model_file", f"checkpoint {path.name} does not say what it is of: {error}") from None
    if version != _VERSION or own != _settings_fields(settings):
        raise HeadraceError("invalid_value", f"checkpoint {path.name} was made with other settings", param="folder")
    for name, to in (("values", parameters.values), ("first", optimiser.first), ("second", optimiser.second)):
        _take(path, tensors.get(name), to)
    optimiser.steps = progress.step
    return progress


def _take(path: Path, tensor: StoredTensor | None, to: Floats) -> None:
    if tensor is None or tensor.kind != "F32" or tensor.shape != to.shape:
        raise HeadraceError("invalid_value", f"checkpoint {path.name} belongs to an adapter of another shape", param="folder")
    values = np.frombuffer(tensor.data.tobytes(), "<f4")
    if not np.isfinite(values).all():
        raise HeadraceError("model_file", f"checkpoint {path.name} has a value that is infinite or not a number")
    to[:] = values


def _settings_fields(settings: TrainingSettings) -> dict[str, object]:
    fields = asdict(settings)
    fields["targets"], fields["ranks"] = list(settings.targets), dict(sorted(settings.ranks.items()))
    return fields


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
