"""One gated MLP block forwards and backwards over parts of a pack. Rows don't meet, so parts may come in any order."""

from __future__ import annotations

import numpy as np

from headrace.training.arithmetic import Floats, activate, activate_back, norm, norm_back
from headrace.training.attention import Gradients
from headrace.training.backbone import MlpWeights
from headrace.training.parameters import Bypass
from headrace.training.saved import BlockRows, MlpNeeds


class MlpBlock:
    """A block of one job."""

    def __init__(self, weights: MlpWeights, bypasses: dict[str, Bypass], eps: float, needs: MlpNeeds) -> None:
        self._weights, self._bypasses, self._eps, self.needs = weights, bypasses, eps, needs
        self._inner = weights.spec.inner

    def forward(self, stream: Floats, rows: BlockRows, first: int, end: int) -> None:
        """The block's output joins the stream."""
        x = stream[first:end]
        if self.needs.x:
            rows.x[first:end] = x
        both = self._both(norm(x, self._weights.norm, self._eps), rows.both[first:end] if self.needs.both else None)
        gate, up = both[:, : self._inner], both[:, self._inner :]
        product = activate(self._weights.spec.activation, gate)[0]
        product *= up
        out = self._output(product)
        if self._weights.post_norm is not None:
            out = norm(out, self._weights.post_norm, self._eps)
        stream[first:end] += out

    def back(self, dx: Floats, rows: BlockRows, first: int, end: int) -> Gradients:
        """The rows' gradient of the stream joins ``dx``. What was not kept is computed again, in the same steps."""
        weights, bypasses, dy, gradients = self._weights, self._bypasses, dx[first:end], Gradients()
        h = norm(rows.x[first:end], weights.norm, self._eps)
        both = rows.both[first:end] if self.needs.both else self._both(h)
        gate, up = both[:, : self._inner], both[:, self._inner :]
        active, inside = activate(weights.spec.activation, gate)
        product = active * up
        if weights.post_norm is not None:
            dy = norm_back(self._output(product), weights.post_norm, self._eps, dy)
        dproduct = weights.down.back(dy) if self.needs.upstream else None
        if "down" in bypasses:
            gradients["down"] = bypasses["down"].back(product, dy, dproduct)
        if dproduct is None:
            return gradients
        dboth = np.empty_like(both)
        np.multiply(dproduct, active, out=dboth[:, self._inner :])
        dproduct *= up
        np.multiply(dproduct, activate_back(weights.spec.activation, gate, inside), out=dboth[:, : self._inner])
        dh = weights.gate_up.back(dboth) if self.needs.input else None
        for name, part in (("gate", dboth[:, : self._inner]), ("up", dboth[:, self._inner :])):
            if name in bypasses:
                gradients[name] = bypasses[name].back(h, part, dh)
        if dh is not None:
            dx[first:end] += norm_back(rows.x[first:end], weights.norm, self._eps, dh)
        return gradients

    def _both(self, h: Floats, out: Floats | None = None) -> Floats:
        both = self._weights.gate_up.forward(h, out=out)
        for name, part in (("gate", both[:, : self._inner]), ("up", both[:, self._inner :])):
            if name in self._bypasses:
                self._bypasses[name].add(h, part)
        return np.asarray(both)

    def _output(self, product: Floats) -> Floats:
        out = self._weights.down.forward(product)
        if "down" in self._bypasses:
            self._bypasses["down"].add(product, out)
        return np.asarray(out)
