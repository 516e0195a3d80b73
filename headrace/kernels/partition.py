"""A block's products divided among ranks, adapters with them: where base and adapter exchange what.

The partition of "S-LoRA: Serving Thousands of Concurrent LoRA Adapters" (Sheng et al.) on that of Megatron-LM. Modules that widen
(q, k, v, gate, up) are divided by outputs and need no exchange in the base; those that narrow (o, down) by inputs, and their
partial outputs are summed. Of an adapter no number is on two ranks:

- where the base is divided by outputs, so is B, and A by its rank; what A gives is gathered (T · rank numbers);
- where the base is divided by inputs, so is A, and B by outputs; what A gives is summed (T · rank numbers), and what B gives goes
  into the rank's own part of the sum that the base makes anyway.

In numpy and fp32: the oracle for runners that do it in several processes, and the seam that they fill with an :class:`Exchange`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.models.adapter import MODULES, LowRank, decode_bf16
from headrace.models.config import AttentionSpec, MlpSpec

Float32 = npt.NDArray[np.float32]

NARROWING = ("o", "down")
"""Modules divided by inputs; all others are by outputs."""


class Exchange(Protocol):
    """What a rank does together with all others; every rank calls the same in the same order."""

    def gather(self, part: Float32) -> Float32:
        """All ranks' parts side by side along the last axis, in order of rank."""

    def total(self, part: Float32) -> Float32:
        """The sum of all ranks' parts, added in order of rank, so that every rank has the same bits."""


@dataclass(frozen=True, slots=True)
class Rank:
    """The ``index``-th of ``count``."""

    index: int
    count: int

    def span(self, size: int) -> slice:
        """This rank's stretch of ``size`` things; stretches differ by at most one."""
        return slice(size * self.index // self.count, size * (self.index + 1) // self.count)

    def check(self, spec: AttentionSpec | MlpSpec) -> None:
        """Refuse a block that can't be divided so: heads stay whole. Raises ``invalid_setting``."""
        whole = {"kv_heads": spec.kv_heads} if isinstance(spec, AttentionSpec) else {"inner": spec.inner}
        for name, size in whole.items():
            if size % self.count:
                message = f"{size} {name} can't be divided among {self.count} ranks"
                raise HeadraceError("invalid_setting", message, param="ranks")


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One rank's part of an adapter's change of one module: ``a``, ``b`` in fp32, the whole scale, where ``b``'s outputs lie."""

    a: Float32
    b: Float32
    scale: float
    outputs: slice


def base_share(module: str, matrix: Float32, rank: Rank) -> Float32:
    """The rank's part of a matrix [outputs, inputs]."""
    _check(module)
    return matrix[:, rank.span(matrix.shape[1])] if module in NARROWING else matrix[rank.span(matrix.shape[0])]


def adapter_share(module: str, part: LowRank, rank: Rank) -> Share:
    """The rank's part of an adapter's change of a module."""
    _check(module)
    a, b = decode_bf16(part.a), decode_bf16(part.b)
    outputs = rank.span(b.shape[0])
    inputs = a[:, rank.span(a.shape[1])] if module in NARROWING else a[rank.span(a.shape[0])]
    return Share(inputs, b[outputs], part.scale, outputs)


def widening(x: Float32, base: Float32, share: Share | None, exchange: Exchange) -> Float32:
    """The rank's outputs of q, k, v, gate or up, from all inputs [T, inputs]."""
    out = x @ base.T
    if share is not None:
        out = out + np.float32(share.scale) * (exchange.gather(x @ share.a.T) @ share.b.T)
    return np.asarray(out)


def narrowing(x: Float32, base: Float32, share: Share | None, exchange: Exchange) -> Float32:
    """All outputs of o or down, on every rank, from the rank's inputs [T, inputs / ranks]."""
    out = x @ base.T
    if share is not None:
        out[:, share.outputs] += np.float32(share.scale) * (exchange.total(x @ share.a.T) @ share.b.T)
    return exchange.total(out)


def mlp(x: Float32, base: Mapping[str, Float32], shares: Mapping[str, Share], exchange: Exchange) -> Float32:
    """Gate, up and down with SiLU: what the block adds to the residual."""
    gate, up = (widening(x, base[name], shares.get(name), exchange) for name in ("gate", "up"))
    inner = np.asarray(gate / (1.0 + np.exp(-gate)) * up, np.float32)
    return narrowing(inner, base["down"], shares.get("down"), exchange)


def attention(
    x: Float32, spec: AttentionSpec, base: Mapping[str, Float32], shares: Mapping[str, Share], exchange: Exchange
) -> Float32:
    """One causal sequence over this rank's heads (no positions), and the output of all: what the block adds to the residual."""
    query, key, value = (widening(x, base[name], shares.get(name), exchange) for name in "qkv")
    width, rows = spec.head_dim, len(x)
    group = spec.heads // spec.kv_heads
    hidden = np.triu(np.full((rows, rows), -np.inf, np.float32), 1)
    mixed: list[Float32] = []
    for head in range(query.shape[1] // width):
        own = slice(head // group * width, (head // group + 1) * width)
        scores = query[:, head * width : (head + 1) * width] @ key[:, own].T * np.float32(spec.scale) + hidden
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed.append(np.asarray(weights / weights.sum(axis=1, keepdims=True) @ value[:, own], np.float32))
    return narrowing(np.concatenate(mixed, axis=1), base["o"], shares.get("o"), exchange)


def _check(module: str) -> None:
    if module not in MODULES:
        raise HeadraceError("invalid_value", f"no module is called {module[:32]!r}; known are {', '.join(MODULES)}", param="module")
