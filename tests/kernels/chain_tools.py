"""Random models, batches and page pools for kernel tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.kernels.interface import Bytes, ChainRunner, Float32, Int32, StepBatch
from headrace.models.config import Activation, AttentionSpec, MlpSpec, ModelConfig, RopeScaling
from headrace.models.weights import NO_BYTES, RawTensor

PAGE_TOKENS = 16


@dataclass(frozen=True)
class Piece:
    """Rows of one sequence in a batch: its tokens from ``start`` on, and all its pages."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]


def ints(values: Iterable[int]) -> Int32:
    return np.fromiter(values, dtype=np.int32)


def make_batch(pieces: Sequence[Piece], output_rows: Iterable[int] | None = None) -> StepBatch:
    counts = [len(piece.tokens) for piece in pieces]
    rows = range(sum(counts)) if output_rows is None else output_rows
    return StepBatch(
        token_ids=ints(token for piece in pieces for token in piece.tokens),
        positions=ints(piece.start + i for piece in pieces for i in range(len(piece.tokens))),
        slice_starts=ints(np.cumsum([0, *counts])),
        page_starts=ints(np.cumsum([0, *(len(piece.pages) for piece in pieces)])),
        page_ids=ints(page for piece in pieces for page in piece.pages),
        output_rows=ints(rows),
    )


def new_pool(chain: ChainRunner, pages: int) -> Bytes:
    """Pages full of NaN patterns: whatever is read without having been written shows."""
    return np.full((pages, chain.page_layout.page_bytes), 0xFF, np.uint8)


class MemoryWeights:
    """A weight source of random float tensors."""

    def __init__(self, config: ModelConfig, seed: int, *, gain: float = 1.0) -> None:
        generator = np.random.default_rng(seed)
        self._tensors: dict[str, Float32] = {}
        for name, shape in tensor_shapes(config).items():
            spread = gain / np.sqrt(shape[-1]) if len(shape) == 2 else 0.2
            centre = 1.0 if name.endswith("norm") else 0.0
            self._tensors[name] = (centre + spread * generator.standard_normal(shape)).astype(np.float32)

    @property
    def size_bytes(self) -> int:
        return sum(values.nbytes for values in self._tensors.values())

    def names(self) -> Iterable[str]:
        return self._tensors

    def tensor(self, name: str) -> RawTensor:
        values = self._tensors[name]
        return RawTensor("F32", values.shape, values.reshape(-1).view(np.uint8))

    def outline(self, name: str) -> RawTensor:
        return replace(self.tensor(name), data=NO_BYTES)

    def release(self) -> None:
        """Nothing is mapped."""


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab, config.hidden), "final_norm": (config.hidden,)}
    if not config.tied_head:
        shapes["head"] = (config.vocab, config.hidden)
    layer = -1
    for block in config.blocks:
        layer += isinstance(block, AttentionSpec)
        prefix = f"layer.{layer}." + ("attention." if isinstance(block, AttentionSpec) else "mlp.")
        own = attention_shapes(block, config) if isinstance(block, AttentionSpec) else mlp_shapes(block, config)
        shapes |= {prefix + name: shape for name, shape in own.items()}
    return shapes


def attention_shapes(block: AttentionSpec, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    queries, keys = block.heads * block.head_dim, block.kv_heads * block.head_dim
    shapes: dict[str, tuple[int, ...]] = {"norm": (config.hidden,), "q": (queries, config.hidden), "k": (keys, config.hidden)}
    shapes |= {"v": (keys, config.hidden), "o": (config.hidden, queries)}
    if block.qkv_bias:
        shapes |= {"q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,)}
    if block.qk_norm:
        shapes |= {"q_norm": (block.head_dim,), "k_norm": (block.head_dim,)}
    return shapes | ({"post_norm": (config.hidden,)} if block.post_norm else {})


def mlp_shapes(block: MlpSpec, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"norm": (config.hidden,), "gate": (block.inner, config.hidden)}
    shapes |= {"up": (block.inner, config.hidden), "down": (config.hidden, block.inner)}
    return shapes | ({"post_norm": (config.hidden,)} if block.post_norm else {})


@dataclass(frozen=True)
class Tiny:
    """What varies between the small random models."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    windows: tuple[int | None, ...] = (None, None)
    thetas: tuple[float, ...] = (10_000.0, 10_000.0)
    scaling: RopeScaling | None = None
    qk_norm: bool = False
    bias: bool = False
    post_norm: bool = False
    activation: Activation = "silu"
    tied: bool = True
    embedding_scale: float = 1.0
    hidden: int = 96
    vocab: int = 203


def tiny_config(tiny: Tiny) -> ModelConfig:
    blocks: list[AttentionSpec | MlpSpec] = []
    for window, theta in zip(tiny.windows, tiny.thetas, strict=True):
        attention = AttentionSpec(
            tiny.heads,
            tiny.kv_heads,
            tiny.head_dim,
            tiny.head_dim**-0.5,
            theta,
            rope_scaling=tiny.scaling,
            window=window,
            qk_norm=tiny.qk_norm,
            qkv_bias=tiny.bias,
            post_norm=tiny.post_norm,
        )
        blocks += [attention, MlpSpec(160, tiny.activation, tiny.post_norm)]
    return ModelConfig(
        "tiny",
        tiny.hidden,
        tiny.vocab,
        2048,
        1e-5,
        tuple(blocks),
        embedding_scale=tiny.embedding_scale,
        tied_head=tiny.tied,
    )


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (codes.astype(np.uint32) << 16).view(np.float32)
