"""How a folder says that its model makes vectors of texts: the small files that sentence-transformers writes beside the weights."""

from __future__ import annotations

from pathlib import Path

from headrace.models.config import Pooling
from headrace.models.fields import Fields
from headrace.models.files import read_limited, refuse
from headrace.models.safetensors_file import parse_json

CONFIG_FIELD = "embedding_pooling"
"""The field of a ``config.json`` that a folder written by headrace has instead."""

POOLING_FILE = "1_Pooling/config.json"
"""Where sentence-transformers says it, beside the weights."""

_NAMES: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "last": "last", "lasttoken": "last"}
_MAX_BYTES = 1 << 16


def read_pooling(folder: Path, config: Fields) -> Pooling | None:
    """Which rows the model's maker pooled; ``None``: nothing is said. Raises ``model_file`` for another way than mean and last."""
    path = folder / POOLING_FILE
    if path.exists():
        fields = Fields(parse_json(read_limited(path, _MAX_BYTES), POOLING_FILE), POOLING_FILE)
        return _known(fields.text("pooling_mode") if "pooling_mode" in fields else _flagged(fields))
    return _known(config.text(CONFIG_FIELD)) if CONFIG_FIELD in config else None


def _flagged(fields: Fields) -> str:
    """The one mode that is switched on. Two at once make longer vectors than the model's, which nothing here knows."""
    prefix = "pooling_mode_"
    modes = [name.removeprefix(prefix) for name, value in fields.values.items() if name.startswith(prefix) and value is True]
    return "+".join(modes)


def _known(mode: str) -> Pooling:
    if mode not in _NAMES:
        raise refuse(f"the model pools {mode[:64]!r}; known are {', '.join(sorted(_NAMES))}")
    return _NAMES[mode]
