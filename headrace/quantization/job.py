"""The whole job: layer after layer, each one rounded on what the rounded layers before it really give."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.quantization.checkpoint import Checkpoint
from headrace.quantization.grid import Float32
from headrace.quantization.kept_layers import check_source_codes, keep_layer
from headrace.quantization.layers import RoundedLayer, round_layer, smooth, turn
from headrace.quantization.model import Ends, RoundedModel, Source, round_ends
from headrace.quantization.recipe import Recipe, check_group

Int32 = npt.NDArray[np.int32]
Progress = Callable[[str, int, int], None]


def require_torch(what: str) -> None:
    """Raise ``unsupported_machine`` naming the extra where torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise HeadraceError("unsupported_machine", f"{what} needs torch: pip install 'headrace[torch]'")


def quantise(
    source: Source, recipe: Recipe, windows: Int32, checkpoint: Checkpoint | None = None, progress: Progress | None = None
) -> RoundedModel:
    """Round a whole model.

    ``windows``: calibration texts [count, tokens], unused by a recipe that looks at no activations. ``checkpoint``: where
    finished layers are kept and found again. ``progress``: called with (what, layers done, layers in all).
    Raises ``invalid_setting`` for a group that does not divide, ``model_file`` for weights that are not finite.
    """
    check_group(recipe.group, source.config)
    if recipe.own_codes:
        check_source_codes(source)
    if recipe.calibrated:
        require_torch("calibration")
    ends = round_ends(source, recipe)
    layers: list[RoundedLayer] = []
    total = source.config.layers
    for layer in _layers(source, recipe, windows, ends, checkpoint):
        layers.append(layer)
        if progress is not None:
            progress("layers", len(layers), total)
    return RoundedModel(source.config, recipe, ends, tuple(layers))


def _layers(source: Source, recipe: Recipe, windows: Int32, ends: Ends, checkpoint: Checkpoint | None) -> Iterator[RoundedLayer]:
    stream = ends.embed(windows, source.config.embedding_scale) if recipe.calibrated else None
    pending: list[tuple[int, RoundedLayer]] = []  # finished before, and not yet run
    for index in range(source.config.layers):
        found = checkpoint.layer(index) if checkpoint is not None else None
        if found is not None:
            pending.append((index, found))
            yield found
            continue
        if recipe.calibrated and pending:
            assert checkpoint is not None
            assert stream is not None
            kept = checkpoint.stream(index)
            stream = kept if kept is not None else _replay(source, recipe, pending, stream)
            pending = []
        layer, stream = _one(source, recipe, index, stream)
        if checkpoint is not None:
            checkpoint.save(index, layer, stream)
        yield layer


def _one(source: Source, recipe: Recipe, index: int, stream: Float32 | None) -> tuple[RoundedLayer, Float32 | None]:
    """Round one layer; the stream behind it comes from the rounded one."""
    if recipe.own_codes:
        return keep_layer(source, index, recipe), None
    attention, _ = source.specs(index)
    layer = turn(source.layer(index), attention, recipe, source.residual_rotation(recipe))
    if stream is None:
        return round_layer(layer, recipe, None), None
    from headrace.quantization.torch_layers import WatchingTap, run_layer

    watching = WatchingTap(stream.shape[0] * stream.shape[1])
    run_layer(source.specs(index), layer, source.config.norm_eps, stream, watching)
    layer, found = smooth(layer, attention, recipe, watching.found())
    rounded = round_layer(layer, recipe, found)
    return rounded, _behind(source, recipe, index, rounded, stream)


def _replay(source: Source, recipe: Recipe, done: list[tuple[int, RoundedLayer]], stream: Float32) -> Float32:
    """The stream behind finished layers, computed anew: the kept one is missing."""
    for index, layer in done:
        stream = _behind(source, recipe, index, layer, stream)
    return stream


def _behind(source: Source, recipe: Recipe, index: int, layer: RoundedLayer, stream: Float32) -> Float32:
    from headrace.quantization.torch_layers import Rounding, RoundingTap, run_layer

    tap = RoundingTap(Rounding(recipe.row_bits))
    return run_layer(source.specs(index), layer.values(), source.config.norm_eps, stream, tap)
