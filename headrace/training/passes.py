"""The forward and the backward pass of one pack, cut into units.

A unit is one block over as many parts of the pack as there are threads. Parts begin at fixed rows and everything that is summed
over rows is summed part after part in one order, so a job's result is the same bits whenever its units run, on however many
threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from headrace.models.config import AttentionSpec, ModelConfig
from headrace.training.arithmetic import Floats
from headrace.training.attention import AttentionBlock, Gradients, KeyShare
from headrace.training.backbone import AttentionWeights, Backbone
from headrace.training.crew import Crew
from headrace.training.head import Head
from headrace.training.mlp import MlpBlock
from headrace.training.pack import Pack
from headrace.training.parameters import Bypass, Parameters
from headrace.training.saved import AttentionNeeds, Make, MlpNeeds, Needs, SavedRows, plan_needs
from headrace.training.units import PART_ROWS, Unit, UnitKind, parts_of

_Parts = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Room:
    """What passes may hold: packs of up to ``tokens``; ``keep_both``: gates are kept instead of computed again. ``part_rows``: of
    the parts that sums are made of; another number gives other bits, so only tests change it. ``make``: where arrays lie."""

    tokens: int
    keep_both: bool = True
    part_rows: int = PART_ROWS
    make: Make = np.empty


class Passes:
    """Forward, loss and backward of packs as large as ``room`` allows. One pack at a time."""

    def __init__(self, backbone: Backbone, parameters: Parameters, crew: Crew, room: Room) -> None:
        self.config, self.parameters = backbone.config, parameters
        self._part_rows = room.part_rows
        self._backbone, self._crew = backbone, crew
        trained = [parameters.layer(layer).keys() for layer in range(self.config.layers)]
        self.needs = plan_needs(self.config, trained, keep_both=room.keep_both)
        self.saved = SavedRows(self.config, self.needs, room.tokens, backbone.dtype, room.make)
        self.head = Head(backbone, crew)
        self._blocks = _make_blocks(backbone, parameters, self.needs)
        self._plain = _make_blocks(backbone, None, self.needs)
        self._angles: dict[object, tuple[Floats, Floats]] = {}

    @property
    def bytes(self) -> int:
        """Memory of activations and loss."""
        return self.saved.bytes + self.head.bytes

    def forward(self, pack: Pack, *, adapted: bool = True) -> Iterator[Unit]:
        """All blocks over the pack; without ``adapted`` as if there were no adapter."""
        yield Unit("loss", 0.0, lambda: self._begin(pack))
        blocks = self._blocks if adapted else self._plain
        for index, block in enumerate(blocks):
            for parts in self._groups(pack):
                run = partial(self._forward, pack, index, block, parts)
                yield Unit("mlp" if isinstance(block, MlpBlock) else "attention", self._work(index, parts), run)

    def score(self, pack: Pack, out: npt.NDArray[np.float64]) -> Iterator[Unit]:
        """Log-probability of each loss row's target, after :meth:`forward`."""
        yield from self.head.score(self.saved.stream, pack, out)

    def backward(self, pack: Pack, factors: npt.NDArray[np.float64], out: npt.NDArray[np.float64]) -> Iterator[Unit]:
        """After :meth:`forward`: the gradient of −Σ factor · log-probability is added to the parameters' gradient."""
        yield from self.head.grade(self.saved.stream, self.saved.dx, pack, factors, out)
        last = next(index for index, need in enumerate(self.needs) if need.any)
        for index in range(len(self._blocks) - 1, last - 1, -1):
            need = self.needs[index]
            if isinstance(need, AttentionNeeds) and need.upstream:
                yield Unit("attention back", 0.0, partial(self._zero, index, len(pack)))
            for parts in reversed(self._groups(pack)):
                tokens = sum(end - first for first, end in parts) if index == last else 0
                work = 1.1 * self._work(index, parts)
                kind: UnitKind = "attention back" if isinstance(need, AttentionNeeds) else "mlp back"
                yield Unit(kind, work, partial(self._backward, pack, index, parts), tokens)

    def _begin(self, pack: Pack) -> None:
        stream = self.saved.stream[: len(pack)]
        stream[:] = self._backbone.embedding.rows(pack.tokens)
        stream *= stream.dtype.type(self.config.embedding_scale)
        self._angles.clear()

    def _angles_of(self, pack: Pack, index: int) -> tuple[Floats, Floats]:
        spec = self.config.blocks[index]
        assert isinstance(spec, AttentionSpec)
        key = (spec.rope_theta, spec.head_dim, spec.rope_scaling)
        if key not in self._angles:
            self._angles[key] = self._backbone.angles(_layer_of(self.config, index), pack.positions)
        return self._angles[key]

    def _groups(self, pack: Pack) -> list[_Parts]:
        parts, at_once = parts_of(len(pack), self._part_rows), self._crew.threads
        return [parts[first : first + at_once] for first in range(0, len(parts), at_once)]

    def _forward(self, pack: Pack, index: int, block: AttentionBlock | MlpBlock, parts: _Parts) -> None:
        stream, rows = self.saved.stream, self.saved.blocks[index]
        if isinstance(block, MlpBlock):
            self._crew.run(lambda part: block.forward(stream, rows, *part), parts)
            return
        angles = self._angles_of(pack, index)
        self._crew.run(lambda part: block.project(stream, angles, rows, *part), parts)
        self._crew.run(lambda part: block.mix(stream, pack, rows, *part), parts)

    def _zero(self, index: int, count: int) -> None:
        rows = self.saved.blocks[index]
        rows.dk[:, :count] = 0.0
        rows.dv[:, :count] = 0.0

    def _backward(self, pack: Pack, index: int, parts: _Parts) -> None:
        block, rows, dx = self._blocks[index], self.saved.blocks[index], self.saved.dx
        if isinstance(block, MlpBlock):
            for gradients in reversed(self._crew.run(lambda part: block.back(dx, rows, *part), parts)):
                self._add(index, gradients)
            return
        mixed: list[tuple[Gradients, list[KeyShare]]] = self._crew.run(lambda part: block.back_mix(dx, pack, rows, *part), parts)
        for gradients, shares in reversed(mixed):
            self._add(index, gradients)
            block.gather(rows, shares)
        if block.needs.upstream:
            angles = self._angles_of(pack, index)
            for gradients in reversed(self._crew.run(lambda part: block.back_project(dx, angles, rows, *part), parts)):
                self._add(index, gradients)

    def _add(self, index: int, gradients: Gradients) -> None:
        own = self.parameters.layer(_layer_of(self.config, index))
        for name, (da, db) in gradients.items():
            own[name].da.__iadd__(da)
            own[name].db.__iadd__(db)

    def _work(self, index: int, parts: _Parts) -> float:
        """10⁹ multiply-adds of a block's forward pass over parts."""
        spec, hidden = self.config.blocks[index], self.config.hidden
        rows = sum(end - first for first, end in parts)
        if isinstance(spec, AttentionSpec):
            heads, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
            seen = parts[-1][1] if spec.window is None else min(parts[-1][1], spec.window)
            return rows * (hidden * 2 * (heads + keys) + 2 * heads * seen) * 1e-9
        return rows * 3 * hidden * spec.inner * 1e-9


def _layer_of(config: ModelConfig, index: int) -> int:
    """The layer of a block."""
    return sum(isinstance(spec, AttentionSpec) for spec in config.blocks[: index + 1]) - 1


def _make_blocks(backbone: Backbone, parameters: Parameters | None, needs: list[Needs]) -> list[AttentionBlock | MlpBlock]:
    """Blocks with the bypasses of ``parameters``, or with none."""
    blocks: list[AttentionBlock | MlpBlock] = []
    for index, (weights, need) in enumerate(zip(backbone.blocks, needs, strict=True)):
        own: dict[str, Bypass] = parameters.layer(_layer_of(backbone.config, index)) if parameters is not None else {}
        if isinstance(weights, AttentionWeights) and isinstance(need, AttentionNeeds):
            blocks.append(AttentionBlock(weights, own, backbone.config.norm_eps, need))
        elif not isinstance(weights, AttentionWeights) and isinstance(need, MlpNeeds):
            blocks.append(MlpBlock(weights, own, backbone.config.norm_eps, need))
    return blocks
