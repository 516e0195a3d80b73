"""Layers run in torch over calibration or evaluation windows: plain, watched, or with simulated rounding of rows and caches.

Uses the blocks of the torch chain itself, so whatever is measured here is measured on the oracle's arithmetic. Needs the
extra `torch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.torch_blocks import BatchPlaces, OpenTap, Tap, TorchAttention, TorchMlp
from headrace.kernels.torch_pages import FloatPages, PagedRows
from headrace.models.config import AttentionSpec, MlpSpec
from headrace.models.rope import inverse_frequencies
from headrace.quantization.grid import Float32
from headrace.quantization.statistics import InputStatistics, LayerStatistics

PAGE_TOKENS = 16
_ROWS = 2048  # computed together
_SAMPLE_ROWS = 256


@dataclass(frozen=True, slots=True)
class Rounding:
    """What the runtime would round besides weights.

    ``row_bits``: 8 or 16 for a kind of rows (qkv, o, gate_up, down). ``kv_bits`` of cached keys and values; ``None``: float32.
    """

    row_bits: Callable[[str], int]
    kv_bits: int | None = None


class RoundingTap:
    """Simulates the runtime's rounding."""

    def __init__(self, rounding: Rounding) -> None:
        self._rounding = rounding

    def rows(self, name: str, x: Tensor) -> Tensor:
        """Symmetric, one scale a row."""
        return round_rows(x, self._rounding.row_bits(name))

    def cache(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Asymmetric, a scale and a zero for each token and head, as in QServe's KV4."""
        bits = self._rounding.kv_bits
        return (key, value) if bits is None else (round_heads(key, bits), round_heads(value, bits))


def round_rows(x: Tensor, bits: int) -> Tensor:
    """Rows as the runtime quantises them: symmetric, one scale a row."""
    limit = 127.0 if bits == 8 else 32512.0
    scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / limit
    return (x / scale).round() * scale


def round_heads(x: Tensor, bits: int) -> Tensor:
    """The last axis on 2^bits evenly spaced values from its smallest to its largest."""
    low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    scale = ((high - low) / float((1 << bits) - 1)).clamp_min(1e-30)
    return ((x - low) / scale).round() * scale + low


class WatchingTap(OpenTap):
    """Gathers what :class:`~headrace.quantization.statistics.LayerStatistics` holds."""

    def __init__(self, rows: int) -> None:
        self._every = max(1, rows // _SAMPLE_ROWS)
        self._count: dict[str, int] = {}
        self._products: dict[str, Tensor] = {}
        self._peaks: dict[str, Tensor] = {}
        self._samples: dict[str, list[Tensor]] = {}
        self._keys: Tensor | None = None

    def rows(self, name: str, x: Tensor) -> Tensor:
        """See :class:`~headrace.kernels.torch_blocks.Tap`."""
        peak = x.abs().amax(dim=0)
        if name in self._products:
            self._products[name].addmm_(x.T, x)
            torch.maximum(self._peaks[name], peak, out=self._peaks[name])
        else:
            self._products[name], self._peaks[name] = x.T @ x, peak
        self._count[name] = self._count.get(name, 0) + len(x)
        self._samples.setdefault(name, []).append(x[:: self._every].clone())
        return x

    def cache(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~headrace.kernels.torch_blocks.Tap`."""
        peak = key.abs().amax(dim=0)
        self._keys = peak if self._keys is None else torch.maximum(self._keys, peak)
        return key, value

    def found(self) -> LayerStatistics:
        """Everything that was seen so far."""
        assert self._keys is not None
        inputs = {
            name: InputStatistics(
                (product / self._count[name]).numpy(), self._peaks[name].numpy(), torch.cat(self._samples[name]).numpy()
            )
            for name, product in self._products.items()
        }
        return LayerStatistics(inputs, self._keys.numpy())


@torch.inference_mode()
def run_layer(
    specs: tuple[AttentionSpec, MlpSpec], layer: Mapping[str, Float32], eps: float, stream: Float32, tap: Tap | None = None
) -> Float32:
    """The residual stream [windows, tokens, hidden] behind a layer; each window is a text of its own."""
    attention_spec, mlp_spec = specs
    attention = TorchAttention(attention_spec, lambda name: _tensor(layer, f"attention.{name}"), eps, tap)
    mlp = TorchMlp(mlp_spec, lambda name: _tensor(layer, f"mlp.{name}"), eps, tap)
    windows, tokens, hidden = stream.shape
    at_once = max(1, _ROWS // tokens)
    frequencies = torch.from_numpy(inverse_frequencies(attention_spec))
    made = np.empty_like(stream)
    for first in range(0, windows, at_once):
        count = min(at_once, windows - first)
        places, pages = _places(count, tokens, attention_spec)
        angle = places.positions[:, None].float() * frequencies
        rows = torch.from_numpy(stream[first : first + count].reshape(-1, hidden))
        after = mlp(attention(rows, places, pages, (angle.cos(), angle.sin())))
        made[first : first + count] = after.numpy().reshape(count, tokens, hidden)
    return made


def _tensor(layer: Mapping[str, Float32], name: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(layer[name]))


def _places(windows: int, tokens: int, spec: AttentionSpec) -> tuple[BatchPlaces, FloatPages]:
    """Pages of one layer for windows that lie one after the other."""
    each = -(-tokens // PAGE_TOKENS)
    shape = windows * each, spec.kv_heads
    pages = FloatPages(torch.zeros(*shape, spec.head_dim, PAGE_TOKENS), torch.zeros(*shape, PAGE_TOKENS, spec.head_dim))
    position = torch.arange(tokens).repeat(windows)
    page = torch.arange(windows).repeat_interleave(tokens) * each + position // PAGE_TOKENS
    slices = tuple(
        PagedRows(index * tokens, (index + 1) * tokens, torch.arange(index * each, (index + 1) * each), tokens)
        for index in range(windows)
    )
    return BatchPlaces(position, page, position % PAGE_TOKENS, slices), pages
