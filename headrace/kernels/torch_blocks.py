"""Blocks in plain torch: attention over pages and the gated MLP, each with its norms and residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.kernels.key_balance import KeyBalance
from headrace.kernels.torch_adapters import Addition, no_addition
from headrace.kernels.torch_pages import PagedRows
from headrace.models.config import AttentionSpec, MlpSpec

ReadTensor = Callable[[str], Tensor]


class Pages(Protocol):
    """Where one layer's keys and values are written and read: as in :mod:`~headrace.kernels.torch_pages`."""

    def write(self, page: Tensor, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """Keys and values [T, kv_heads, head_dim] of rows into their slots."""

    def read(self, where: PagedRows) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, keys, head_dim] of one slice."""


@dataclass(frozen=True, slots=True)
class BatchPlaces:
    """A batch on the device: ``positions`` [T], each row's ``page`` and ``slot`` (on the pool's side), and its slices."""

    positions: Tensor
    page: Tensor
    slot: Tensor
    slices: tuple[PagedRows, ...]


class Tap(Protocol):
    """Sees, and may replace, what enters a product or a page: calibration watches here, simulated rounding changes it."""

    def rows(self, name: str, x: Tensor) -> Tensor:
        """Rows [T, inputs] about to meet the matrices ``name``: ``qkv``, ``o``, ``gate_up`` or ``down``."""

    def cache(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values [T, kv_heads, head_dim] about to be written into pages."""


class OpenTap:
    """Lets everything through as it is."""

    def rows(self, name: str, x: Tensor) -> Tensor:
        """See :class:`Tap`."""
        return x

    def cache(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Tap`."""
        return key, value


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / rms(x) · gain over the last axis, in at least float32."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * gain


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (i, i + head_dim/2) of ``x`` [T, heads, head_dim] by each row's angles [T, head_dim/2]."""
    low, high = x.chunk(2, dim=-1)
    cosine, sine = cosine[:, None].to(x.dtype), sine[:, None].to(x.dtype)
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)


def linear(x: Tensor, module: str, weights: Mapping[str, Tensor], add: Addition) -> Tensor:
    """Rows times the matrix ``module`` of a block, with its bias if it has one and what adapters add."""
    out, more = F.linear(x, weights[module], weights.get(f"{module}_bias")), add(module, x)
    return out if more is None else out + more


class TorchAttention:
    """Norm, Q/K/V, rotary positions, grouped-query attention over pages, output, residual."""

    def __init__(self, spec: AttentionSpec, read: ReadTensor, eps: float, tap: Tap | None = None) -> None:
        self.spec, self._eps, self._tap = spec, eps, tap or OpenTap()
        names = ["norm", "q", "k", "v", "o"]
        names += ["q_bias", "k_bias", "v_bias"] if spec.qkv_bias else []
        names += ["q_norm", "k_norm"] if spec.qk_norm else []
        names += ["post_norm"] if spec.post_norm else []
        self._weights = {name: read(name) for name in names}
        self._balance: KeyBalance | None = None

    def set_balance(self, found: KeyBalance) -> None:
        """Write keys as ``found`` says from now on; see :mod:`~headrace.kernels.key_balance`."""
        self._balance = found

    def heads(self, x: Tensor, angles: tuple[Tensor, Tensor], add: Addition = no_addition) -> tuple[Tensor, Tensor, Tensor]:
        """Finished queries (not yet times ``scale``), keys and values of the rows, [T, heads, head_dim] each."""
        normed = self._tap.rows("qkv", rms_norm(x, self._weights["norm"], self._eps))
        query, key, value = (self._project(normed, name, add) for name in "qkv")
        return rotate(query, *angles), rotate(key, *angles), value

    def __call__(
        self, x: Tensor, places: BatchPlaces, pages: Pages, angles: tuple[Tensor, Tensor], add: Addition = no_addition
    ) -> Tensor:
        """Residual stream [T, hidden] after the block. Writes K and V of all rows before any row reads them."""
        weights, spec = self._weights, self.spec
        query, key, value = self.heads(x, angles, add)
        key, value = self._tap.cache(key, value)
        if self._balance is not None:
            shift, factor, inverse = (torch.from_numpy(one).to(key) for one in self._balance.parts())
            key = (key + shift) * factor
            query = query * inverse.repeat_interleave(spec.heads // spec.kv_heads, dim=0)
        pages.write(places.page, places.slot, key, value)
        mixed = torch.cat([self._attend(query, places, rows, pages) for rows in places.slices])
        out = linear(self._tap.rows("o", mixed), "o", weights, add)
        if spec.post_norm:
            out = rms_norm(out, weights["post_norm"], self._eps)
        return x + out

    def _project(self, normed: Tensor, name: str, add: Addition) -> Tensor:
        """Q, K or V as [T, heads, head_dim]."""
        rows = linear(normed, name, self._weights, add).unflatten(-1, (-1, self.spec.head_dim))
        gain = self._weights.get(f"{name}_norm")
        return rows if gain is None else rms_norm(rows, gain, self._eps)

    def _attend(self, query: Tensor, places: BatchPlaces, rows: PagedRows, pages: Pages) -> Tensor:
        """One slice's rows over its own pages: [t, heads · head_dim]."""
        spec, count = self.spec, rows.end - rows.first
        # Slots behind the newest key hold whatever was there before, NaN perhaps: they are cut off and not just masked.
        keys, values = (part.to(query) for part in pages.read(rows))
        # [t, heads, d] → [kv_heads, group · t, d]: the heads of a group are rows that see the same keys
        grouped = query[rows.first : rows.end].unflatten(1, (spec.kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)
        seen = None
        if count > 1 or (spec.window is not None and rows.keys > spec.window):
            visible = self._visible_keys(places.positions[rows.first : rows.end], rows.keys)
            seen = visible.repeat(spec.heads // spec.kv_heads, 1)
        mixed = F.scaled_dot_product_attention(grouped[None], keys[None], values[None], seen, scale=spec.scale)[0]
        return mixed.unflatten(1, (-1, count)).permute(2, 0, 1, 3).flatten(1)

    def _visible_keys(self, positions: Tensor, keys: int) -> Tensor:
        """True where a row may look: not at later keys, nor at keys that have left its window. [t, keys]."""
        distance = positions[:, None] - torch.arange(keys, device=positions.device)
        visible = distance >= 0
        return visible if self.spec.window is None else visible & (distance < self.spec.window)


class TorchMlp:
    """Norm, activation(gate) · up, down, residual."""

    def __init__(self, spec: MlpSpec, read: ReadTensor, eps: float, tap: Tap | None = None) -> None:
        self._spec, self._eps, self._tap = spec, eps, tap or OpenTap()
        names = ["norm", "gate", "up", "down", *(["post_norm"] if spec.post_norm else [])]
        self._weights = {name: read(name) for name in names}

    def __call__(self, x: Tensor, add: Addition = no_addition) -> Tensor:
        """Residual stream [T, hidden] after the block."""
        weights = self._weights
        normed = self._tap.rows("gate_up", rms_norm(x, weights["norm"], self._eps))
        gate = linear(normed, "gate", weights, add)
        gate = F.silu(gate) if self._spec.activation == "silu" else F.gelu(gate, approximate="tanh")
        inner = self._tap.rows("down", gate * linear(normed, "up", weights, add))
        out = linear(inner, "down", weights, add)
        if self._spec.post_norm:
            out = rms_norm(out, weights["post_norm"], self._eps)
        return x + out
