"""What engines must have in common to exchange requests and pages: on one machine, and between machines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os

from headrace import __version__
from headrace.engine.pool_size import kv_format
from headrace.engine.settings import EngineSettings
from headrace.models.catalog import OpenModel, find_model, open_model

REASONS = {
    "version": ("version", "version"),
    "model": ("model", "model's name"),
    "files": ("model", "model's content"),
    "device": ("weights", "device"),
    "weights": ("weights", "weights' format"),
    "kv": ("pages", "page format"),
}
"""What may differ, what others follow from first: the word under which that is counted, and how it is called."""


def kernels_id() -> str:
    """Tells one build of the native kernels from another."""
    from headrace.kernels import _native

    file = os.stat(_native.__file__)
    return f"{file.st_size}-{file.st_mtime_ns}"


def page_identity(model: OpenModel, settings: EngineSettings) -> str:
    """Names everything that a page's bytes depend on beside the tokens: ``model-rest``, in letters and digits."""
    facts = [
        [dataclasses.astuple(file) for file in model.files], settings.device, settings.weights,
        kv_format(settings.kv, settings.device),
        __version__, kernels_id(),
    ]  # fmt: skip
    name = hashlib.sha256(model.name.encode()).hexdigest()[:16]
    return f"{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"


def content_identity(model: OpenModel, settings: EngineSettings) -> str:
    """As :func:`page_identity`, the same on every machine: by what is in the files, not where and since when they are there.

    An object in JSON, so that two of them tell what differs.
    """
    together = hashlib.sha256()
    for identity in model.files:
        with open(identity.path, "rb") as file:
            together.update(hashlib.file_digest(file, "sha256").digest())
    facts = {
        "version": __version__, "model": model.name, "files": together.hexdigest()[:32],
        "device": settings.device, "weights": settings.weights, "kv": kv_format(settings.kv, settings.device),
    }  # fmt: skip
    return json.dumps(facts)


def identity_here(settings: EngineSettings) -> str:
    """The :func:`content_identity` of the model as this machine has it. Reads its files once. Raises as opening it does."""
    return content_identity(open_model(find_model(settings.model)), settings)


def difference(ours: str, theirs: str) -> tuple[str, str] | None:
    """(what to count it as, what to say) when two engines can't work together; ``None`` when they can."""
    if ours == theirs:
        return None
    try:
        mine, other = json.loads(ours), json.loads(theirs)
        name = next(name for name in REASONS if mine[name] != other[name])
        reason, called = REASONS[name]
        return reason, f"its {called} is {str(other[name])[:100]}, the server's is {str(mine[name])[:100]}"
    except (ValueError, TypeError, KeyError, StopIteration):
        return "version", "it says what it has in another way than this version does"
