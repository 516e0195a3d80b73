"""What the steps of a quantisation recipe win: 4-bit weights, and smoothed keys for 4-bit caches, on held-out text."""

from __future__ import annotations

import math

import numpy as np

from headrace.errors import HeadraceError
from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.quality import disjoint_texts, real_text
from headrace.evaluation.quantisation import Yardstick, cut_windows
from headrace.kernels.interface import Int32
from headrace.models.catalog import OpenModel
from headrace.quantization.job import quantise, require_torch
from headrace.quantization.model import RoundedModel, Source
from headrace.quantization.recipe import Recipe, possible_steps
from headrace.text.open_tokenizer import open_tokenizer

_WINDOW = 512
_SHARE = 0.6  # of the text's paragraphs that recipes may look at; the others are measured on
_GAP = "of the KL that plain rounding to 4-bit groups of 64 leaves, closed by the full recipe"
_SMOOTH = "KL with 4-bit keys and values, keys as they are / smoothed (SmoothAttention)"


def recipes(conditions: Conditions, model: OpenModel) -> list[Claim]:
    """Plain rounding beside the full recipe, and 4-bit caches without and with smoothed keys, on the same text."""
    try:
        require_torch("calibration")
    except HeadraceError as error:
        return [_gap_claim(math.nan, error.message), _smooth_claim(math.nan, error.message)]
    calibration, held_out = _texts(model, (1, 1) if conditions.quick else (8, 8))
    source = Source(model.config, model.weights)
    yardstick = Yardstick(source, held_out)

    def made(number: int, recipe: Recipe) -> RoundedModel:
        conditions.report("recipes", number, 4)
        return quantise(source, recipe, calibration)

    # in a quick run the steps that cost minutes are left out
    steps = tuple(step for step in possible_steps(model.config) if not conditions.quick or step not in ("gptq", "clip", "smooth"))
    plain, full = (yardstick.measure(made(number, Recipe(64, "16", taken))).mean_kl for number, taken in enumerate(((), steps)))
    rough, smooth = (
        yardstick.measure(made(2 + number, Recipe(0, "16", taken)), "kv4").mean_kl
        for number, taken in enumerate(((), ("smooth-attention",)))
    )
    scored = f"{held_out.size:,} held-out tokens"
    return [
        _gap_claim(100 * (1 - full / plain), f"KL {plain:.3f} and {full:.3f} on {scored}; {', '.join(steps)}"),
        _smooth_claim(rough / smooth, f"8-bit weights, KL {rough:.4f} and {smooth:.4f} on {scored}"),
    ]


def _texts(model: OpenModel, windows: tuple[int, int]) -> tuple[Int32, Int32]:
    """Windows to calibrate on and to measure on; no paragraph is in both."""
    tokenizer = open_tokenizer(model.tokenizer_source)
    own, held_out = disjoint_texts(real_text(), _SHARE)
    calibration = cut_windows(tokenizer, own, windows[0], _WINDOW, "calibration")
    return calibration, np.ascontiguousarray(cut_windows(tokenizer, held_out, windows[1], _WINDOW, "evaluation"))


def _gap_claim(closed: float, note: str) -> Claim:
    return Claim("recipe_gap", _GAP, ">=", 50, closed, "%", note)


def _smooth_claim(ratio: float, note: str) -> Claim:
    return Claim("recipe_smooth", _SMOOTH, ">=", 1.02, ratio, "x", note)
