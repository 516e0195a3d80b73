"""The matrices of a model, packed as the engine packs them and sorted by shape: what kernels are measured and compared on."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.kernels import _native
from headrace.kernels.formats import weight_formats
from headrace.kernels.packing import pack
from headrace.models.catalog import OpenModel
from headrace.models.config import AttentionSpec


@dataclass(frozen=True, slots=True)
class MatrixGroup:
    """Matrices of one role: ``names`` of the tensors stacked in each one, packed ``matrices`` of equal shape and format."""

    role: str
    names: tuple[tuple[str, ...], ...]
    matrices: tuple[_native.PackedMatrix, ...]

    @property
    def columns(self) -> int:
        """Outputs of each matrix, padding included."""
        return self.matrices[0].columns

    @property
    def inputs(self) -> int:
        """Inputs of each matrix."""
        return self.matrices[0].inputs

    @property
    def formats(self) -> str:
        """Runtime formats of the panels, joined by ``+``."""
        return "+".join(dict.fromkeys(self.matrices[0].formats))

    @property
    def activation_bits(self) -> int:
        """Of the rows that it is multiplied by: 8 and 16 are integers, 32 fp32."""
        formats = weight_formats()
        return max(formats[name].activation_bits for name in self.matrices[0].formats)


def matrix_groups(model: OpenModel, pool: _native.ThreadPool) -> list[MatrixGroup]:
    """Every matrix of the model that a step multiplies, by role, format and shape; the largest share of bytes first."""
    config, found = model.config, dict[tuple[object, ...], list[tuple[tuple[str, ...], _native.PackedMatrix]]]()
    roles: list[tuple[str, tuple[str, ...], bool]] = [("head", ("embedding" if config.tied_head else "head",), False)]
    for index, block in enumerate(config.blocks):
        layer = f"layer.{index // 2}."
        if isinstance(block, AttentionSpec):
            roles.append(("qkv", tuple(f"{layer}attention.{part}" for part in "qkv"), False))
            roles.append(("o", (f"{layer}attention.o",), False))
        else:
            roles.append(("gate_up", (f"{layer}mlp.gate", f"{layer}mlp.up"), True))
            roles.append(("down", (f"{layer}mlp.down",), False))
    for role, names, interleave in roles:
        matrix = pack([model.weights.tensor(name) for name in names], pool, interleave=interleave)
        key = role, tuple(dict.fromkeys(matrix.formats)), matrix.columns, matrix.inputs
        found.setdefault(key, []).append((names, matrix))
    groups = [
        MatrixGroup(str(key[0]), tuple(names for names, _ in members), tuple(matrix for _, matrix in members))
        for key, members in found.items()
    ]
    return sorted(groups, key=lambda group: -sum(matrix.bytes for matrix in group.matrices))
