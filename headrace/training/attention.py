"""One attention block forwards and backwards over parts of a pack.

The backward pass takes parts from the last to the first and gathers what keys and values get from later queries in fp32
accumulators ("Token-Level Co-Serving of LLM Inference and Parameter-Efficient Finetuning", FlexLLM): once all parts from a row
on have been taken, the row's own key and value have their whole gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.training.arithmetic import Floats, norm, norm_back, rotate, soften
from headrace.training.backbone import AttentionWeights
from headrace.training.pack import Pack, Segment
from headrace.training.parameters import Bypass
from headrace.training.saved import AttentionNeeds, BlockRows

Gradients = dict[str, tuple[Floats, Floats]]
"""By module: a part's gradient of A and of B."""


@dataclass(frozen=True, slots=True, eq=False)
class KeyShare:
    """What the rows of one segment give back to the keys and values ``first … end − 1``: [kv_heads, keys, head_dim] each."""

    first: int
    end: int
    dk: Floats
    dv: Floats


class AttentionBlock:
    """A block of one job. ``rows``: what it saves of the present pack, and ``bypasses`` of its layer."""

    def __init__(self, weights: AttentionWeights, bypasses: dict[str, Bypass], eps: float, needs: AttentionNeeds) -> None:
        self._weights, self._bypasses, self._eps, self.needs = weights, bypasses, eps, needs
        spec = weights.spec
        self._heads, self._keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    def project(self, stream: Floats, angles: tuple[Floats, Floats], rows: BlockRows, first: int, end: int) -> None:
        """Queries, keys and values of rows, as far as attention needs them and the backward pass will."""
        x, spec = stream[first:end], self._weights.spec
        if self.needs.x:
            rows.x[first:end] = x
        raw = self._raw(norm(x, self._weights.norm, self._eps))
        query, key, value = self._split(raw)
        turn = (angles[0][first:end], angles[1][first:end])
        if self._weights.q_norm is not None and self._weights.k_norm is not None:
            query, key = norm(query, self._weights.q_norm, self._eps), norm(key, self._weights.k_norm, self._eps)
        rows.q[first:end], rows.k[first:end], rows.v[first:end] = rotate(query, *turn), rotate(key, *turn), value
        assert spec.heads * spec.head_dim == self._heads

    def mix(self, stream: Floats, pack: Pack, rows: BlockRows, first: int, end: int) -> None:
        """Attention of rows whose keys, and all earlier ones, have been projected; the block's output joins the stream."""
        mixed = rows.mixed[first:end]
        for segment in pack.segments(first, end):
            begin = self._first_key(segment)
            shares, values = self._scores(rows, segment, begin), self._keys_of(rows.v, begin, segment.end)
            mixed[segment.first - first : segment.end - first] = _ungrouped(shares @ values, segment.end - segment.first)
        out = self._output(mixed)
        if self._weights.post_norm is not None:
            out = norm(out, self._weights.post_norm, self._eps)
        stream[first:end] += out

    def back_mix(self, dx: Floats, pack: Pack, rows: BlockRows, first: int, end: int) -> tuple[Gradients, list[KeyShare]]:
        """Backwards through output and attention: leaves the rows' gradients of queries in ``rows.dq``."""
        dy: Floats = dx[first:end]
        mixed, gradients = rows.mixed[first:end], Gradients()
        if self._weights.post_norm is not None:
            dy = norm_back(self._output(mixed), self._weights.post_norm, self._eps, dy)
        dmixed = self._weights.o.back(dy) if self.needs.upstream else None
        if "o" in self._bypasses:
            gradients["o"] = self._bypasses["o"].back(mixed, dy, dmixed)
        if dmixed is None:
            return gradients, []
        shares = [self._back_segment(rows, one, dmixed[one.first - first : one.end - first]) for one in pack.segments(first, end)]
        return gradients, shares

    def gather(self, rows: BlockRows, shares: list[KeyShare]) -> None:
        """Add what a part's rows give back to keys and values. Parts must come from the last to the first."""
        for share in reversed(shares):
            rows.dk[:, share.first : share.end] += share.dk
            rows.dv[:, share.first : share.end] += share.dv

    def back_project(self, dx: Floats, angles: tuple[Floats, Floats], rows: BlockRows, first: int, end: int) -> Gradients:
        """Backwards through positions, projections and norm: the rows' gradient of the stream joins ``dx``."""
        weights, spec = self._weights, self._weights.spec
        turn, gradients = (angles[0][first:end], -angles[1][first:end]), Gradients()
        dq = rotate(rows.dq[first:end], *turn)
        dk = rotate(rows.dk[:, first:end].transpose(1, 0, 2), *turn)
        dv = rows.dv[:, first:end].transpose(1, 0, 2)
        h = norm(rows.x[first:end], weights.norm, self._eps)
        if weights.q_norm is not None and weights.k_norm is not None:
            query, key, _ = self._split(self._raw(h))
            dq, dk = norm_back(query, weights.q_norm, self._eps, dq), norm_back(key, weights.k_norm, self._eps, dk)
        count = end - first
        draw = np.concatenate([dq.reshape(count, -1), dk.reshape(count, -1), dv.reshape(count, -1)], axis=1)
        dh = weights.qkv.back(draw) if self.needs.input else None
        edges = (0, self._heads, self._heads + self._keys, self._heads + 2 * self._keys)
        for name, begin, stop in zip("qkv", edges[:-1], edges[1:], strict=True):
            if name in self._bypasses:
                gradients[name] = self._bypasses[name].back(h, draw[:, begin:stop], dh)
        if dh is not None:
            dx[first:end] += norm_back(rows.x[first:end], weights.norm, self._eps, dh)
        assert spec is weights.spec
        return gradients

    def _raw(self, h: Floats) -> Floats:
        """Products with Q, K and V, bypasses and biases included: [t, (heads + 2 · kv_heads) · head_dim]."""
        raw = self._weights.qkv.forward(h)
        if self._weights.qkv_bias is not None:
            raw += self._weights.qkv_bias
        edges = (0, self._heads, self._heads + self._keys, self._heads + 2 * self._keys)
        for name, begin, stop in zip("qkv", edges[:-1], edges[1:], strict=True):
            if name in self._bypasses:
                self._bypasses[name].add(h, raw[:, begin:stop])
        return np.asarray(raw)

    def _split(self, raw: Floats) -> tuple[Floats, Floats, Floats]:
        d = self._weights.spec.head_dim
        one, two = self._heads, self._heads + self._keys
        count = len(raw)
        return raw[:, :one].reshape(count, -1, d), raw[:, one:two].reshape(count, -1, d), raw[:, two:].reshape(count, -1, d)

    def _output(self, mixed: Floats) -> Floats:
        out = self._weights.o.forward(mixed)
        if "o" in self._bypasses:
            self._bypasses["o"].add(mixed, out)
        return np.asarray(out)

    def _first_key(self, segment: Segment) -> int:
        window = self._weights.spec.window
        return segment.start if window is None else max(segment.start, segment.first - window + 1)

    def _grouped(self, rows: Floats) -> Floats:
        """[t, heads, d] → [kv_heads, group · t, d]: the heads of a group are rows that see the same keys."""
        spec = self._weights.spec
        grouped = rows.reshape(len(rows), spec.kv_heads, -1, spec.head_dim).transpose(1, 2, 0, 3)
        return np.ascontiguousarray(grouped).reshape(spec.kv_heads, -1, spec.head_dim)

    @staticmethod
    def _keys_of(rows: Floats, begin: int, end: int) -> Floats:
        """Keys or values [kv_heads, keys, d] of these rows."""
        return np.ascontiguousarray(rows[begin:end].transpose(1, 0, 2))

    def _scores(self, rows: BlockRows, segment: Segment, begin: int) -> Floats:
        """Each row's shares of the keys from ``begin`` on, [kv_heads, group · t, keys]: the same steps in both directions."""
        spec, count, keys = self._weights.spec, segment.end - segment.first, segment.end - begin
        query = self._grouped(rows.q[segment.first : segment.end])
        scores = query @ self._keys_of(rows.k, begin, segment.end).transpose(0, 2, 1)
        scores *= scores.dtype.type(spec.scale)
        distance = (np.arange(segment.first, segment.end)[:, None] - np.arange(begin, segment.end)[None]).astype(np.int32)
        hidden = distance < 0
        if spec.window is not None:
            hidden |= distance >= spec.window
        seen = scores.reshape(spec.kv_heads, -1, count, keys)
        seen += np.where(hidden, -np.inf, 0.0).astype(scores.dtype)
        soften(scores)
        return np.asarray(scores)

    def _back_segment(self, rows: BlockRows, segment: Segment, dmixed: Floats) -> KeyShare:
        spec, begin = self._weights.spec, self._first_key(segment)
        count = segment.end - segment.first
        shares = self._scores(rows, segment, begin)
        given = self._grouped(dmixed.reshape(count, spec.heads, spec.head_dim))
        dv = shares.transpose(0, 2, 1) @ given
        dshares = given @ self._keys_of(rows.v, begin, segment.end).transpose(0, 2, 1)
        dshares -= np.einsum("hrk,hrk->hr", dshares, shares)[..., None]
        dshares *= shares
        dshares *= dshares.dtype.type(spec.scale)
        dq = dshares @ self._keys_of(rows.k, begin, segment.end)
        dk = dshares.transpose(0, 2, 1) @ self._grouped(rows.q[segment.first : segment.end])
        rows.dq[segment.first : segment.end] = _ungrouped(dq, count).reshape(count, spec.heads, spec.head_dim)
        return KeyShare(begin, segment.end, dk, dv)


def _ungrouped(grouped: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """[kv_heads, group · t, d] → [t, heads · d]."""
    kv_heads, _, width = grouped.shape
    return grouped.reshape(kv_heads, -1, count, width).transpose(2, 0, 1, 3).reshape(count, -1)
