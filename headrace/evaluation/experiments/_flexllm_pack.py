"""Running text for the measurements of training."""

from __future__ import annotations

import numpy as np

from headrace.training.dataset_file import Sample
from headrace.training.pack import Pack, make_pack


def text_pack(ids: list[int], tokens: int, documents: int = 1) -> Pack:
    """Running text as a pack of so many documents, every token learnt."""
    size = tokens // documents
    parts = [np.array(ids[first : first + size], np.int32) for first in range(0, size * documents, size)]
    return make_pack([Sample(part, np.ones(len(part), np.float32)) for part in parts], range(documents), tokens)
