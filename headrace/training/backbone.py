"""The frozen weights of a model, while a job trains on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.kernels._native import PackedMatrix, ThreadPool
from headrace.kernels.packing import Stack, pack_all, stacks
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.models.rope import inverse_frequencies
from headrace.models.weights import WeightSource, dequantise
from headrace.training.arithmetic import Floats
from headrace.training.frozen import Frozen, PackedProduct, PlainMatrix

Matrices = Callable[[], Mapping[str, PackedMatrix]]
"""Hands out a model's packed matrices, by the names of :func:`headrace.kernels.packing.stacks`."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionWeights:
    """Of one attention block: ``qkv`` one below the other, ``qkv_bias`` too; ``None`` where the model has no such norm or bias."""

    spec: AttentionSpec
    norm: Floats
    qkv: Frozen
    o: Frozen
    qkv_bias: Floats | None
    q_norm: Floats | None
    k_norm: Floats | None
    post_norm: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class MlpWeights:
    """Of one MLP block: ``gate_up`` one below the other."""

    spec: MlpSpec
    norm: Floats
    gate_up: Frozen
    down: Frozen
    post_norm: Floats | None


class Backbone:
    """A model's weights as they are served: ``matrices`` hands them out packed (``None``: they are packed here).

    Gradients flow through them as QLoRA's do ("QLoRA: Efficient Finetuning of Quantized LLMs"); they are never changed. With a
    ``dtype``, for oracles, they are plain arrays of that type: the values that the codes of ``weights`` stand for.
    """

    def __init__(
        self, config: ModelConfig, weights: WeightSource, dtype: npt.DTypeLike | None = None, matrices: Matrices | None = None
    ) -> None:
        self.config = config
        self.dtype = np.dtype(np.float32 if dtype is None else dtype)
        self._weights = weights
        self._frozen = self._packed(matrices) if dtype is None else self._plain()
        self.embedding = self._frozen["embedding"]
        self.head = self._frozen.get("head", self.embedding)
        self.final_norm = self._read("final_norm")
        self.blocks = self._blocks()
        self._frequencies = [inverse_frequencies(spec) for spec in config.attention_blocks]
        weights.release()
        del self._weights, self._frozen

    @property
    def bytes(self) -> int:
        """Memory that the matrices take."""
        total = self.embedding.nbytes + (0 if self.head is self.embedding else self.head.nbytes)
        for block in self.blocks:
            total += block.qkv.nbytes + block.o.nbytes if isinstance(block, AttentionWeights) else 0
            total += block.gate_up.nbytes + block.down.nbytes if isinstance(block, MlpWeights) else 0
        return total

    def angles(self, layer: int, positions: npt.NDArray[np.int32]) -> tuple[Floats, Floats]:
        """Cosine and sine of each position's angles, [T, head_dim / 2]."""
        turns = positions.astype(np.float64)[:, None] * self._frequencies[layer].astype(np.float64)
        return np.cos(turns).astype(self.dtype), np.sin(turns).astype(self.dtype)

    def _blocks(self) -> list[AttentionWeights | MlpWeights]:
        blocks: list[AttentionWeights | MlpWeights] = []
        layer = -1
        for spec in self.config.blocks:
            if isinstance(spec, AttentionSpec):
                layer += 1
                blocks.append(self._attention(spec, f"layer.{layer}.attention."))
            else:
                blocks.append(self._mlp(spec, f"layer.{layer}.mlp."))
        return blocks

    def _attention(self, spec: AttentionSpec, prefix: str) -> AttentionWeights:
        bias = self._stack(prefix, ("q_bias", "k_bias", "v_bias")) if spec.qkv_bias else None
        return AttentionWeights(
            spec, self._read(prefix + "norm"), self._frozen[prefix + "qkv"], self._frozen[prefix + "o"], bias,
            self._read(prefix + "q_norm") if spec.qk_norm else None, self._read(prefix + "k_norm") if spec.qk_norm else None,
            self._read(prefix + "post_norm") if spec.post_norm else None,
        )  # fmt: skip

    def _mlp(self, spec: MlpSpec, prefix: str) -> MlpWeights:
        post = self._read(prefix + "post_norm") if spec.post_norm else None
        gate_up, down = self._frozen[prefix + "gate_up"], self._frozen[prefix + "down"]
        return MlpWeights(spec, self._read(prefix + "norm"), gate_up, down, post)

    def _packed(self, matrices: Matrices | None) -> Mapping[str, Frozen]:
        if matrices is not None:
            return {name: PackedProduct(matrix) for name, matrix in matrices().items()}
        return {stack.name: PackedProduct(matrix) for stack, matrix in pack_all(self.config, self._weights, ThreadPool(1))}

    def _plain(self) -> Mapping[str, Frozen]:
        return {stack.name: PlainMatrix(self._stacked(stack)) for stack in stacks(self.config)}

    def _stacked(self, stack: Stack) -> Floats:
        parts = [self._read(name) for name in stack.tensors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _stack(self, prefix: str, names: tuple[str, ...]) -> Floats:
        return np.concatenate([self._read(prefix + name) for name in names])

    def _read(self, name: str) -> npt.NDArray[np.floating[Any]]:
        return dequantise(self._weights.tensor(name)).astype(self.dtype, copy=False)
