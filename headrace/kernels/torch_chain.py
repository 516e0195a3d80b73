"""A chain of blocks in plain torch: the slow oracle of the native kernels, and the path for any other device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.errors import HeadraceError
from headrace.kernels import key_balance
from headrace.kernels.interface import KV_BITS, PAGE_TOKENS, Bytes, Float32, Int32, PageLayout, StepBatch, TorchKv, kv_head_bytes
from headrace.kernels.key_balance import KeyBalance
from headrace.kernels.torch_adapters import TorchAdapters
from headrace.kernels.torch_blocks import BatchPlaces, TorchAttention, TorchMlp, rms_norm
from headrace.kernels.torch_pages import CodedPages, FloatPages, LayerPages, PagedRows, RowPages, split_last
from headrace.models.config import AttentionSpec, ModelConfig, RopeScaling
from headrace.models.rope import inverse_frequencies
from headrace.models.weights import WeightSource, dequantise

_RopeKey = tuple[float, int, RopeScaling | None]


class TorchChain:
    """A :class:`~headrace.kernels.interface.ChainRunner` on dequantised weights in ``dtype`` on ``device``.

    ``kv``: how keys and values rest in pages, as in the other runners; ``"fp32"`` keeps them exact, in twice the size of bf16 and
    in rows that attention reads in place where a slice has its pages one after the other (:class:`StepBatch`, ``first_rows``).
    The pool stays in the host's memory, so a device other than the CPU takes its pages over for every layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightSource,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        kv: TorchKv = "bf16",
    ) -> None:
        self.config = config
        self._device, self._dtype, self._kv = torch.device(device), dtype, kv
        if kv in ("kv8", "kv4") and any(spec.head_dim % 32 for spec in config.attention_blocks):
            raise HeadraceError("invalid_setting", f"kv {kv} needs head_dim in multiples of 32; use bf16", param="kv")
        self.page_layout = _layout(config, kv)
        self._weights = weights
        self._blocks = self._build_blocks()
        self._embedding = self._read("embedding")
        self._final_gain = self._read("final_norm")
        self._head = self._embedding if config.tied_head else self._read("head")
        specs = {_rope_key(spec): spec for spec in config.attention_blocks}
        self._frequencies = {key: torch.from_numpy(inverse_frequencies(spec)).to(self._device) for key, spec in specs.items()}
        if kv == "kv4":
            plain = TorchChain(config, weights, device, dtype, "fp32")
            attention = [block for block in self._blocks if isinstance(block, TorchAttention)]
            for block, found in zip(attention, plain.key_balances(), strict=True):
                block.set_balance(found)
        self._kept = torch.empty((0, config.hidden), device=self._device, dtype=dtype)

    @torch.inference_mode()
    def forward(self, batch: StepBatch, pool: Bytes) -> None:
        """Run every block over the batch; see :class:`~headrace.kernels.interface.ChainRunner`.

        ``pool``: writable, C-contiguous [pages, page_bytes].
        """
        layers = self._layers(pool)
        places = self._places(batch)
        angles = {key: self._angles(places.positions, frequency) for key, frequency in self._frequencies.items()}
        tokens = torch.from_numpy(batch.token_ids.astype(np.int64)).to(self._device)
        x = self._embedding[tokens] * self.config.embedding_scale
        adapters, layer = TorchAdapters(self.config, batch, pool), -1
        for block in self._blocks:
            if isinstance(block, TorchAttention):
                layer += 1
                x = block(x, places, layers[layer], angles[_rope_key(block.spec)], adapters.layer(layer))
            else:
                x = block(x, adapters.layer(layer))
        rows = torch.from_numpy(batch.output_rows.astype(np.int64)).to(self._device)
        self._kept = rms_norm(x[rows], self._final_gain, self.config.norm_eps)

    @torch.inference_mode()
    def key_balances(self) -> list[KeyBalance]:
        """How keys of each layer are made ready for 4 bits; see :mod:`~headrace.kernels.key_balance`."""
        batch = key_balance.sample_batch(self.config, PAGE_TOKENS)
        views = self._layers(np.zeros((len(batch.page_ids), self.page_layout.page_bytes), np.uint8))
        places = self._places(batch)
        x = self._embedding[torch.from_numpy(batch.token_ids.astype(np.int64)).to(self._device)] * self.config.embedding_scale
        heads: list[tuple[Float32, Float32]] = []
        for block in self._blocks:
            if isinstance(block, TorchAttention):
                angles = self._angles(places.positions, self._frequencies[_rope_key(block.spec)])
                query, key, _ = block.heads(x, angles)
                heads.append(((query * block.spec.scale).float().cpu().numpy(), key.float().cpu().numpy()))
                x = block(x, places, views[len(heads) - 1], angles)
            else:
                x = block(x)
        return key_balance.measure(self.config, heads.__getitem__)

    def hidden(self) -> Float32:
        """The kept rows after the final norm, [R, hidden]."""
        return np.asarray(self._kept.float().cpu().numpy())

    def logits(self, first: int, count: int) -> Float32:
        """Logits of kept rows ``first … first + count``: [count, vocab]."""
        return np.asarray(self._logits(first, count).cpu().numpy())

    def greedy(self, first: int, count: int) -> Int32:
        """Arg-max token of each of those rows; the lowest id wins a tie."""
        # numpy promises the first maximum, torch does not
        return np.asarray(self.logits(first, count).argmax(axis=-1), dtype=np.int32)

    @torch.inference_mode()
    def _logits(self, first: int, count: int) -> Tensor:
        return F.linear(self._kept[first : first + count], self._head).float()

    def _read(self, name: str) -> Tensor:
        return torch.from_numpy(dequantise(self._weights.tensor(name))).to(self._device, self._dtype)

    def _build_blocks(self) -> list[TorchAttention | TorchMlp]:
        blocks: list[TorchAttention | TorchMlp] = []
        layer, eps = -1, self.config.norm_eps
        for spec in self.config.blocks:
            if isinstance(spec, AttentionSpec):
                layer += 1
                blocks.append(TorchAttention(spec, self._reader(f"layer.{layer}.attention."), eps))
            else:
                blocks.append(TorchMlp(spec, self._reader(f"layer.{layer}.mlp."), eps))
        return blocks

    def _reader(self, prefix: str) -> Callable[[str], Tensor]:
        return lambda name: self._read(prefix + name)

    def _layers(self, pool: Bytes) -> list[LayerPages]:
        """Each layer's K and V inside the pool, sharing its memory."""
        layout, specs = self.page_layout, self.config.attention_blocks
        if pool.dtype != np.uint8 or pool.ndim not in (2, 3) or pool[:1].size != layout.page_bytes:
            raise HeadraceError(
                "internal_error", f"the pool must be uint8 [pages, {layout.page_bytes}], C-contiguous, or in strips"
            )
        if self._kv == "fp32":
            strips = torch.from_numpy(pool.reshape(len(pool), layout.strips, -1)).view(torch.float32)
            rows = split_last(strips.transpose(0, 1), PAGE_TOKENS, -1)
            heads = specs[0].kv_heads
            return [RowPages(layer.view(torch.Size((2, heads, *layer.shape[1:])))) for layer in torch.split(rows, 2 * heads)]
        memory = torch.from_numpy(pool)
        views: list[LayerPages] = []
        start = 0
        for spec in specs:
            size = _layer_bytes(spec, self._kv)
            views.append(_layer_pages(split_last(memory[:, start : start + size], spec.kv_heads, -1), spec, self._kv))
            start += size
        return views

    def _places(self, batch: StepBatch) -> BatchPlaces:
        """Which page and slot each row writes, and which pages each slice reads."""
        pages = np.empty(len(batch.positions), dtype=np.int64)
        slices = []
        for index in range(len(batch.slice_starts) - 1):
            first, end = int(batch.slice_starts[index]), int(batch.slice_starts[index + 1])
            if first == end:
                continue
            own = batch.page_ids[batch.page_starts[index] : batch.page_starts[index + 1]].astype(np.int64)
            here = batch.positions[first:end]
            pages[first:end] = own[here // PAGE_TOKENS]
            row = -1 if batch.first_rows is None else int(batch.first_rows[index])
            slices.append(PagedRows(first, end, torch.from_numpy(own), int(here.max()) + 1, row))
        positions = torch.from_numpy(batch.positions.astype(np.int64))
        return BatchPlaces(positions.to(self._device), torch.from_numpy(pages), positions % PAGE_TOKENS, tuple(slices))

    def _angles(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions[:, None].float() * frequencies
        return angle.cos(), angle.sin()


def _rope_key(spec: AttentionSpec) -> _RopeKey:
    return spec.rope_theta, spec.head_dim, spec.rope_scaling


def _layout(config: ModelConfig, kv: TorchKv) -> PageLayout:
    """Pages of all layers; fp32 ones have a strip for the keys, and one for the values, of each head."""
    specs = config.attention_blocks
    if kv != "fp32":
        return PageLayout(PAGE_TOKENS, sum(_layer_bytes(spec, kv) for spec in specs), kv)
    shapes = {(spec.kv_heads, spec.head_dim) for spec in specs}
    if len(shapes) > 1:
        raise HeadraceError("invalid_setting", "kv fp32 needs layers with equal heads; use bf16", param="kv")
    heads, width = shapes.pop()
    strips = 2 * heads * len(specs)
    return PageLayout(PAGE_TOKENS, strips * PAGE_TOKENS * width * 4, kv, strips)


def _layer_bytes(spec: AttentionSpec, kv: TorchKv) -> int:
    """K and V of one layer in one page as the native kernels lay them out."""
    assert kv != "fp32"
    return spec.kv_heads * kv_head_bytes(kv, spec.head_dim)


def _layer_pages(memory: Tensor, spec: AttentionSpec, kv: TorchKv) -> LayerPages:
    """One layer's K and V in ``memory`` [pages, heads, bytes of a head]."""
    if kv in ("kv8", "kv4"):
        return CodedPages(memory, spec.head_dim, KV_BITS[kv])
    both = split_last(memory.view(torch.bfloat16), 2, spec.head_dim * PAGE_TOKENS)
    keys, values = both.unbind(2)
    return FloatPages(split_last(keys, spec.head_dim, PAGE_TOKENS), split_last(values, PAGE_TOKENS, spec.head_dim))
