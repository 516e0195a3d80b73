"""What each matrix of a model runs as, and how many bytes a token reads of it."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.kernels.formats import source_kinds, weight_formats
from headrace.models.weights import BYTE_ROWS, RawTensor, WeightSource

PANEL = 16  # output channels of one panel


@dataclass(frozen=True, slots=True)
class WeightUse:
    """Matrices of one kind: ``kind`` in the file or after recoding, the runtime ``format``, their number, weights and bytes
    (without the padding of panels)."""

    kind: str
    format: str
    activation_bits: int
    matrices: int
    weights: int
    bytes: int

    @property
    def bits(self) -> float:
        """Bits of one weight with everything that belongs to it."""
        return 8 * self.bytes / self.weights


def weight_uses(source: WeightSource) -> list[WeightUse]:
    """All matrices of a model by kind, most bytes first. Kinds that have no kernel are left out (packing refuses them)."""
    kinds, formats, found = source_kinds(), weight_formats(), dict[str, list[RawTensor]]()
    for name in source.names():
        outline = source.outline(name)
        if len(outline.shape) == 2 and outline.kind in kinds:
            found.setdefault(outline.kind, []).append(outline)
    uses = []
    for kind, outlines in found.items():
        style = formats[kinds[kind].format]
        size = sum(
            -(-rows // PANEL) * -(-inputs // style.group) * style.record_bytes for rows, inputs in (o.shape for o in outlines)
        )
        weights = sum(rows * inputs for rows, inputs in (o.shape for o in outlines))
        uses.append(WeightUse(kind.removesuffix(BYTE_ROWS), style.name, style.activation_bits, len(outlines), weights, size))
    return sorted(uses, key=lambda use: -use.bytes)
