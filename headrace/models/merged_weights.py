"""A model with adapters merged into its matrices: what serving them unmerged must amount to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from headrace.models.adapter import Adapter, LowRank
from headrace.models.weights import NO_BYTES, RawTensor, WeightSource, dequantise


class MergedWeights:
    """A :class:`~headrace.models.weights.WeightSource` with adapters, each times a factor, added to another's matrices.

    What is changed is in float32, all else as the source has it.
    """

    def __init__(self, source: WeightSource, adapters: Sequence[tuple[Adapter, float]]) -> None:
        self._source = source
        self._changes: dict[str, list[tuple[LowRank, float]]] = {}
        for adapter, factor in adapters:
            for index, layer in enumerate(adapter.layers):
                for module, part in layer.items():
                    block = "attention" if module in "qkvo" else "mlp"
                    self._changes.setdefault(f"layer.{index}.{block}.{module}", []).append((part, factor))

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of the source."""
        return self._source.size_bytes

    def names(self) -> Iterable[str]:
        """The source's names."""
        return self._source.names()

    def tensor(self, name: str) -> RawTensor:
        """A matrix that an adapter changes in float32, all else as it is."""
        raw = self._source.tensor(name)
        if name not in self._changes:
            return raw
        values = dequantise(raw)
        for part, factor in self._changes[name]:
            values += np.float32(factor) * part.delta()
        return RawTensor("F32", values.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))

    def outline(self, name: str) -> RawTensor:
        """The same without its bytes."""
        return replace(self.tensor(name), data=NO_BYTES)

    def release(self) -> None:
        """Let go of the source's files."""
        self._source.release()
