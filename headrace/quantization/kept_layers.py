"""Layers of a 4-bit source with the codes that they have; what the source holds otherwise goes to 8 bits per channel."""

from __future__ import annotations

from dataclasses import replace

from headrace.errors import HeadraceError
from headrace.models.nibble_groups import NIBBLE_KINDS, nibble_groups
from headrace.quantization.layers import MATRICES, Codes, RoundedLayer, round_matrix
from headrace.quantization.model import Source
from headrace.quantization.recipe import Recipe
from headrace.quantization.source_codes import keep_codes


def check_source_codes(source: Source) -> None:
    """Raise ``invalid_setting`` for a source without any matrices whose codes could be kept."""
    if not any(_has_codes(source, index, kind) for index in range(source.config.layers) for kind in MATRICES):
        raise HeadraceError(
            "invalid_setting",
            f"group source keeps the codes of {', '.join(NIBBLE_KINDS)}, and this model has none; choose 32, 64, 128 or channel",
            param="group",
        )


def keep_layer(source: Source, index: int, recipe: Recipe) -> RoundedLayer:
    """Each matrix with its own codes. Matrices that share their rows (q, k and v) keep them together or not at all.

    Raises ``model_file`` for scales that are not finite.
    """
    kept = {name for kind, names in MATRICES.items() if _has_codes(source, index, kind) for name in names}
    channels = replace(recipe, group=0)
    matrices: dict[str, Codes] = {}
    for name in (name for names in MATRICES.values() for name in names):
        full = f"layer.{index}.{name}"
        if name in kept:
            matrices[name] = keep_codes(nibble_groups(source.weights.tensor(full)))
        else:
            matrices[name] = round_matrix(source.tensor(full), channels, None)
    prefix = f"layer.{index}."
    others = (name.removeprefix(prefix) for name in source.weights.names() if name.startswith(prefix))
    return RoundedLayer(matrices, {name: source.tensor(prefix + name) for name in others if name not in matrices})


def _has_codes(source: Source, index: int, kind: str) -> bool:
    return all(source.weights.outline(f"layer.{index}.{name}").kind in NIBBLE_KINDS for name in MATRICES[kind])
