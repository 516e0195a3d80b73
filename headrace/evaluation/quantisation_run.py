"""One quantisation from a model's name to a folder with its report: what ``headrace quantize`` calls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.evaluation.quality import disjoint_texts, real_text
from headrace.evaluation.quantisation import KV_BITS, Progress, Row, Yardstick, compare, cut_windows, document
from headrace.kernels.interface import Int32
from headrace.models.catalog import OpenModel, find_model, open_model
from headrace.quantization.checkpoint import Checkpoint, check_output
from headrace.quantization.format import QuantisationInfo, copy_tokenizer, model_digest, write_model
from headrace.quantization.job import quantise, require_torch
from headrace.quantization.model import RoundedModel, Source
from headrace.quantization.recipe import ACTIVATIONS, GROUPS, SOURCE_GROUP, Recipe, check_group, parse_recipe
from headrace.settings.declaration import option, validate
from headrace.text.open_tokenizer import open_tokenizer
from headrace.text.tokenizer import Tokenizer

REPORT_NAME = "quantisation.json"
WINDOW = 512  # tokens of one calibration or evaluation text
MAX_TEXT_BYTES = 1 << 28
_CALIBRATION_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class QuantiseSettings:
    """What the quantised model will be like, and how much is looked at."""

    group: str = option(
        "channel",
        choices=(*GROUPS, SOURCE_GROUP),
        help="channel: 8-bit codes; a number: 4-bit codes, so many inputs share a scale; source: a 4-bit file's own codes.",
    )
    activation_bits: str = option("8", choices=tuple(ACTIVATIONS), help="Of rows in products; mixed: 8, but 16 before `down`.")
    steps: str = option("auto", help="auto, all, none, or steps joined by commas; auto: what pays with these activations.")
    calibration_text: str | None = option(
        None, unit="file", help="UTF-8 text like what the model will see; none: packaged English."
    )
    calibration_tokens: int = option(8192, unit="tokens", minimum=512, maximum=10_000_000, help="How much of it is used.")
    evaluation_tokens: int = option(4096, unit="tokens", minimum=512, maximum=10_000_000, help="Held-out text that is measured.")
    kv: str = option("bf16", choices=tuple(KV_BITS), help="Also measure with keys and values in this form.")
    report: str = option("brief", choices=("none", "brief", "ladder"), help="Compare with plain rounding, or add step by step.")
    threads: int = option(2, minimum=1, maximum=256, help="Compute threads.")

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a run made. ``rows`` are empty without a report; ``size_bytes``: of the weights file."""

    recipe: Recipe
    rows: tuple[Row, ...]
    size_bytes: int


def run(model: str, out: Path, settings: QuantiseSettings, progress: Progress | None = None) -> Outcome:
    """Quantise ``model`` into the new folder ``out``; an interrupted run goes on where it was.

    Raises ``invalid_setting`` for an output folder in use, a group or step that the model doesn't allow or a text that is too
    short, ``model_not_found`` and ``model_file`` for the source, ``unsupported_machine`` where torch is missing.
    """
    check_output(out)
    opened = open_model(find_model(model), progress)
    recipe = parse_recipe(settings.group, settings.activation_bits, settings.steps, opened.config)
    check_group(recipe.group, opened.config)
    if recipe.calibrated or settings.report != "none":
        require_torch("calibration and the report" if settings.report != "none" else "calibration")
    calibration, held_out = _windows(opened, settings, recipe)
    path = find_model(model).path
    if path is None:
        raise HeadraceError("internal_error", "an opened model has no path")
    source = Source(opened.config, opened.weights)
    digest = model_digest(path)
    checkpoint = Checkpoint(out, _job(digest, recipe, calibration))
    with _threads(settings.threads, needed=recipe.calibrated or settings.report != "none"):
        rounded = quantise(source, recipe, calibration, checkpoint, progress)
        rows = [] if settings.report == "none" else _measure(source, rounded, (calibration, held_out), settings, progress)
    _write(out, rounded, digest, path, rows)
    checkpoint.discard()
    return Outcome(recipe, tuple(rows), (out / "model.safetensors").stat().st_size)


def _measure(
    source: Source, rounded: RoundedModel, windows: tuple[Int32, Int32], settings: QuantiseSettings, progress: Progress | None
) -> list[Row]:
    yardstick = Yardstick(source, windows[1], progress)
    return compare(yardstick, rounded, source, windows[0], (settings.report, settings.kv), progress)


def _windows(opened: OpenModel, settings: QuantiseSettings, recipe: Recipe) -> tuple[Int32, Int32]:
    """Calibration and held-out windows, without a paragraph in common."""
    if settings.calibration_text is None:
        own, held_out = disjoint_texts(real_text(), _CALIBRATION_SHARE)
    else:
        own = _read_text(Path(settings.calibration_text))
        held_out = disjoint_texts(real_text(), 0.0, avoid=own)[1]
    tokenizer = open_tokenizer(opened.tokenizer_source)
    length = min(WINDOW, opened.config.context_length)
    calibration = np.zeros((0, length), np.int32)
    if recipe.calibrated:
        calibration = cut_windows(tokenizer, own, _count(settings.calibration_tokens, length), length, "calibration")
    return calibration, _held_out(tokenizer, held_out, settings, length)


def _held_out(tokenizer: Tokenizer, text: str, settings: QuantiseSettings, length: int) -> Int32:
    if settings.report == "none":
        return np.zeros((0, length), np.int32)
    return cut_windows(tokenizer, text, _count(settings.evaluation_tokens, length), length, "evaluation")


def _count(tokens: int, length: int) -> int:
    return max(1, tokens // length)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise HeadraceError(
                "invalid_setting", f"calibration_text: {path} has more than {MAX_TEXT_BYTES} bytes", param="calibration_text"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"calibration_text: {path} can't be read: {error.strerror}"
        raise HeadraceError("invalid_setting", message, param="calibration_text") from error
    except UnicodeDecodeError as error:
        raise HeadraceError("invalid_setting", f"calibration_text: {path} is not UTF-8", param="calibration_text") from error


def _job(digest: str, recipe: Recipe, calibration: Int32) -> dict[str, str]:
    """Everything that the layers depend on."""
    text = hashlib.sha256(np.ascontiguousarray(calibration).tobytes()).hexdigest()
    return {"source": digest, "recipe": recipe.describe(), "calibration text": text}


@contextmanager
def _threads(count: int, needed: bool) -> Iterator[None]:
    if not needed:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(out: Path, rounded: RoundedModel, digest: str, source: Path, rows: list[Row]) -> None:
    recipe = rounded.recipe
    info = QuantisationInfo(recipe.describe(), recipe.group, recipe.row_bits("qkv"), digest)
    if rows:
        (out / REPORT_NAME).write_text(json.dumps(document(rows, rounded), indent=1) + "\n", encoding="utf-8")
    copy_tokenizer(source, out)
    write_model(out, rounded.own_config, info, rounded.matrices(), rounded.vectors())
