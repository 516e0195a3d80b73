"""Where an adapter's numbers lie in pages: pure arithmetic, the same for who allocates, who fills and who reads.

Adapters share the pool of keys and values ("S-LoRA: Serving Thousands of Concurrent LoRA Adapters", Sheng et al.: unified
paging), but in pages of bytes: with grouped heads a row of A is no longer as wide as a token's keys. Any rank and any set of
modules is packed one behind the other::

    layer 0: q: [A: rank rows of inputs] [B: outputs/16 panels of rank × 16]   k: …   v: …   o: …   gate: …   up: …   down: …
    layer 1: …

in bfloat16. A row of A or a panel of B never crosses a page border: what does not fit begins the next page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from headrace.errors import HeadraceError
from headrace.kernels.interface import AdapterDirectory
from headrace.models.adapter import MODULES, Sides, module_sides
from headrace.models.config import ModelConfig

PANEL = 16  # outputs of one panel, as in packed matrices
VALUE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Run:
    """Pieces (rows of A, or panels of B) of ``piece_bytes``: ``count`` of them, the first at ``offset`` of page ``page``."""

    page: int
    offset: int
    count: int
    piece_bytes: int

    def spans(self, page_bytes: int) -> list[tuple[int, int, int, int]]:
        """(page, offset, first piece, pieces) of each stretch without a page border."""
        found, page, offset, first = [], self.page, self.offset, 0
        while first < self.count:
            fit = min(self.count - first, (page_bytes - offset) // self.piece_bytes)
            if fit:
                found.append((page, offset, first, fit))
            first, page, offset = first + fit, page + 1, 0
        return found


@dataclass(frozen=True, slots=True, eq=False)
class AdapterLayout:
    """Places of one shape of adapter: ``runs`` by (layer, module) as (A, B), and how many pages they take."""

    runs: Mapping[tuple[int, str], tuple[Run, Run]]
    layers: int
    pages: int
    page_bytes: int

    def directory(self, scales: Mapping[tuple[int, str], float]) -> AdapterDirectory:
        """The places as the arrays that runners read."""
        places = np.zeros((self.layers * len(MODULES), 5), np.int32)
        factors = np.zeros(len(places), np.float32)
        for (layer, module), (a, b) in self.runs.items():
            row = layer * len(MODULES) + MODULES.index(module)
            places[row] = a.count, a.page, a.offset, b.page, b.offset
            factors[row] = scales[layer, module]
        places.flags.writeable = factors.flags.writeable = False
        return AdapterDirectory(places, factors)


Ranks = Sequence[Mapping[str, int]]


def lay_out(config: ModelConfig, ranks: Ranks, page_bytes: int) -> AdapterLayout:
    """Where an adapter of these ``ranks`` (by layer and module) lies in pages of ``page_bytes``.

    Waste is what is left of the last page, and at each border less than one piece. Raises ``model_file`` for a rank whose
    piece is larger than a page.
    """
    return _lay_out(config, tuple(tuple(sorted(layer.items())) for layer in ranks), page_bytes)


@lru_cache(maxsize=64)  # adapters of one team have few shapes, and a shape has hundreds of runs
def _lay_out(config: ModelConfig, ranks: tuple[tuple[tuple[str, int], ...], ...], page_bytes: int) -> AdapterLayout:
    runs: dict[tuple[int, str], tuple[Run, Run]] = {}
    page, offset = 0, 0
    for layer, (own, sides) in enumerate(zip(ranks, module_sides(config), strict=True)):
        given = dict(own)
        for module in (name for name in MODULES if name in given):
            pair = []
            for count, piece in _pieces(given[module], sides[module]):
                if piece > page_bytes:
                    message = (
                        f"rank {given[module]} of layer {layer} {module} needs {piece} bytes in a row, a page has {page_bytes}"
                    )
                    raise HeadraceError("model_file", message)
                pair.append(Run(page, offset, count, piece))
                page, offset = _behind(pair[-1], page_bytes)
            runs[layer, module] = pair[0], pair[1]
    return AdapterLayout(runs, len(ranks), page + (offset > 0), page_bytes)


def _pieces(rank: int, sides: Sides) -> tuple[tuple[int, int], tuple[int, int]]:
    """(count, bytes) of the rows of A and of the panels of B."""
    inputs, outputs = sides
    return (rank, inputs * VALUE_BYTES), (-(-outputs // PANEL), rank * PANEL * VALUE_BYTES)


def _behind(run: Run, page_bytes: int) -> tuple[int, int]:
    """Page and offset behind the run's last piece."""
    page, offset, _, count = run.spans(page_bytes)[-1]
    return page, offset + count * run.piece_bytes
