"""What a quantisation costs: its predictions against the fp32 source on text that no calibration has seen.

Weights are the very values that are stored; rows and caches are rounded as the runtime would. Needs the extra `torch`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from headrace.errors import HeadraceError
from headrace.evaluation.quality import Quality
from headrace.kernels.interface import Float32, Int32
from headrace.quantization.job import quantise
from headrace.quantization.model import HEAD_BITS, RoundedModel, Source
from headrace.quantization.recipe import STEPS, Recipe
from headrace.text.tokenizer import Tokenizer

KV_BITS: dict[str, int | None] = {"bf16": None, "kv8": 8, "kv4": 4}
_ROWS = 256  # of logits looked at together
# Steps that make sense together, in the order in which a report adds them.
_RUNGS = (("rotate", "rotate-heads"), ("smooth-attention", "reorder", "smooth"), ("clip", "gptq"))

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One choice and its quality. ``kv``: how keys and values rest (``bf16`` is measured as float32)."""

    choice: str
    kv: str
    quality: Quality


def cut_windows(tokenizer: Tokenizer, text: str, count: int, length: int, what: str) -> Int32:
    """``count`` texts of ``length`` tokens, each with the model's begin-of-text where it asks for one.

    Raises ``invalid_setting`` where the text has fewer tokens than that.
    """
    tokens = tokenizer.encode(text)
    if len(tokens) < count * length:
        raise HeadraceError(
            "invalid_setting",
            f"the {what} text has {len(tokens)} tokens, {count} windows of {length} need {count * length}; give a longer text"
            " or fewer tokens",
            param="calibration_text" if what == "calibration" else "evaluation_tokens",
        )
    windows = np.asarray(tokens[: len(tokens) // length * length], np.int32).reshape(-1, length)
    windows = windows[np.linspace(0, len(windows) - 1, count).astype(np.int64)]
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        windows[:, 0] = tokenizer.bos_id
    return windows


class Yardstick:
    """The source's own predictions on held-out windows [count, length], kept as final hidden rows."""

    def __init__(self, source: Source, windows: Int32, progress: Progress | None = None) -> None:
        self._source, self._windows, self._progress = source, windows, progress
        embedding = source.tensor("embedding")
        stream = embedding[windows] * np.float32(source.config.embedding_scale)
        self._rows = _normed(self._through(stream, source.layer, "reference"), source.tensor("final_norm"), source.config.norm_eps)
        self._head = embedding if source.config.tied_head else source.tensor("head")

    def measure(self, model: RoundedModel, kv: str = "bf16") -> Quality:
        """The quantised model's predictions compared with the source's at every position."""
        from headrace.quantization.torch_layers import Rounding, RoundingTap

        began = time.perf_counter()
        tap = RoundingTap(Rounding(model.recipe.row_bits, KV_BITS[kv]))
        stream = model.ends.embed(self._windows, self._source.config.embedding_scale)
        stream = self._through(stream, lambda index: model.layers[index].values(), "evaluation", tap)
        rows = _normed(stream, model.ends.final_norm, self._source.config.norm_eps)
        return self._compare(rows, model.ends.head_values(), began)

    def _through(self, stream: Float32, layer_of: Callable[[int], Any], what: str, tap: Any = None) -> Float32:
        from headrace.quantization.torch_layers import run_layer

        source = self._source
        for index in range(source.config.layers):
            stream = run_layer(source.specs(index), layer_of(index), source.config.norm_eps, stream, tap)
            if self._progress is not None:
                self._progress(what, index + 1, source.config.layers)
        return stream

    def _compare(self, rows: Float32, head: Float32, began: float) -> Quality:
        import torch

        from headrace.quantization.torch_layers import round_rows

        known_head, guessed_head = torch.from_numpy(self._head), torch.from_numpy(head)
        guessed_rows = round_rows(torch.from_numpy(rows), HEAD_BITS)
        following = np.concatenate([self._windows[:, 1:], np.full((len(self._windows), 1), -1, np.int32)], axis=1).reshape(-1)
        divergences, agreed, losses = [], 0, np.zeros(2)
        for first in range(0, len(rows), _ROWS):
            known = torch.log_softmax(torch.from_numpy(self._rows[first : first + _ROWS]) @ known_head.T, dim=-1)
            guessed = torch.log_softmax(guessed_rows[first : first + _ROWS] @ guessed_head.T, dim=-1)
            divergences.append((known.exp() * (known - guessed)).sum(dim=-1).numpy())
            agreed += int((known.argmax(dim=-1) == guessed.argmax(dim=-1)).sum())
            here = following[first : first + _ROWS]
            at = np.flatnonzero(here >= 0)
            losses -= [side[at, here[at]].sum(dtype=torch.float64).item() for side in (known, guessed)]
        every, predicted = np.concatenate(divergences), int((following >= 0).sum())
        return Quality(
            positions=len(every), top1_agreement=agreed / len(every), mean_kl=float(every.mean(dtype=np.float64)),
            p99_kl=float(np.quantile(every, 0.99)), reference_perplexity=math.exp(losses[0] / predicted),
            candidate_perplexity=math.exp(losses[1] / predicted), seconds=time.perf_counter() - began,
        )  # fmt: skip


def rungs(recipe: Recipe, every: bool) -> list[tuple[str, Recipe]]:
    """Recipes that lead up to ``recipe``: plain rounding and, with ``every``, one group of its steps more each time."""
    ladder = [("plain rounding", replace(recipe, steps=()))]
    taken: tuple[str, ...] = ()
    for added in _RUNGS if every else ():
        more = tuple(step for step in added if step in recipe)
        taken = tuple(step for step in STEPS if step in (*taken, *more))
        if more and len(taken) < len(recipe.steps):
            ladder.append((f"+ {', '.join(more)}", replace(recipe, steps=taken)))
    return ladder


def compare(
    yardstick: Yardstick, model: RoundedModel, source: Source, calibration: Int32, choices: Sequence[str], progress: Progress | None
) -> list[Row]:
    """The rows of a report: each rung of ``choices`` (``brief``: plain rounding only; ``ladder``: all), then the model itself."""
    rows = []
    if model.recipe.steps:
        for label, recipe in rungs(model.recipe, "ladder" in choices):
            rung = quantise(source, recipe, calibration, progress=_named(progress, label))
            rows.append(Row(label, "bf16", yardstick.measure(rung)))
    label = "the source's codes" if model.recipe.own_codes else "full recipe" if model.recipe.steps else "plain rounding"
    return rows + [Row(label, kv, yardstick.measure(model, kv)) for kv in KV_BITS if kv == "bf16" or kv in choices]


def document(rows: Sequence[Row], model: RoundedModel) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "kind": "quantisation",
        "recipe": {"group": model.recipe.group, "activations": model.recipe.activations, "steps": list(model.recipe.steps)},
        "rows": [
            {"choice": row.choice, "kv": row.kv, "perplexity_ratio": row.quality.perplexity_ratio} | asdict(row.quality)
            for row in rows
        ],
    }


def _normed(stream: Float32, gain: Float32, eps: float) -> Float32:
    rows = stream.reshape(-1, stream.shape[-1])
    return np.asarray(rows / np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + np.float32(eps)) * gain, np.float32)


def _named(progress: Progress | None, label: str) -> Progress | None:
    return None if progress is None else lambda _, done, total: progress(label, done, total)
