"""The chain of blocks on native kernels: packed integer weights, one native call a step, results that no neighbour moves.

Rows are bit-identical whatever else is in the step, however a prompt was cut, and with any number of threads: integer
products are exact in any order (QServe's observation, Lin et al., "W4A8KV4"), every float sum of a row runs in an order
that depends on that row alone, and K and V are written to their pages before any row reads them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.kernels import key_balance
from headrace.kernels._native import AttentionShape, Chain, ThreadPool
from headrace.kernels._native import StepAdapters as NativeAdapters
from headrace.kernels.interface import PAGE_TOKENS, Bytes, Float32, Int32, KvFormat, PageLayout, StepAdapters, StepBatch
from headrace.kernels.key_balance import KeyBalance
from headrace.kernels.packing import Matrices, pack_all
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.models.rope import inverse_frequencies
from headrace.models.weights import WeightSource, dequantise

MAX_THREADS = 256

Packer = Callable[[ModelConfig, WeightSource, ThreadPool], Matrices]
_Vectors = dict[str, Float32]
_BATCH_ARRAYS = ("token_ids", "positions", "slice_starts", "page_starts", "page_ids", "output_rows")


class NativeChain:
    """A :class:`~headrace.kernels.interface.ChainRunner` on the CPU.

    ``weights`` is read once (its codes are kept; the source may be closed afterwards). ``pack`` makes the packed matrices
    (``None``: in memory, :func:`~headrace.kernels.packing.pack_all`); ``kv``: how keys and values rest in pages; ``threads``: how
    many, or those of another chain, with which it takes turns. Raises
    ``model_file`` for weights that don't fit the config. Not for concurrent use: calls on one chain wait for each other.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightSource,
        threads: int | ThreadPool,
        pack: Packer | None = None,
        kv: KvFormat = "bf16",
    ) -> None:
        self.config = config
        self._pool = ThreadPool(_checked_threads(threads)) if isinstance(threads, int) else threads
        self._weights = weights
        self._matrices = (pack or _pack_in_memory)(config, weights, self._pool)
        try:
            self._balances: list[KeyBalance] = []
            if kv == "kv4":
                self._chain = self._built("bf16")
                self._balances = key_balance.measure(config, self._measured_heads().__getitem__)
            self._chain = self._built(kv)
        except ValueError as error:
            raise HeadraceError("model_file", f"the model's weights don't form its chain: {error}") from error
        weights.release()
        del self._weights, self._matrices, self._balances
        self.page_layout = PageLayout(PAGE_TOKENS, self._chain.page_bytes, kv)

    @property
    def pool(self) -> ThreadPool:
        """The threads that compute, to be shared with whatever runs between two calls."""
        return self._pool

    @property
    def threads(self) -> int:
        """Threads that compute, the caller included."""
        return self._pool.threads

    def set_threads(self, threads: int) -> None:
        """Compute with that many threads (1 … 256) from the next call on (a running one is waited for); same bits."""
        self._chain.resize_threads(_checked_threads(threads))

    def forward(self, batch: StepBatch, pool: Bytes) -> None:
        """Run every block over the batch; see :class:`~headrace.kernels.interface.ChainRunner`.

        ``pool``: writable, C-contiguous uint8 [pages, page_bytes]. Raises :class:`ValueError` naming the array at fault
        when a row, page, position or token lies outside its bounds; nothing has been computed or written then.
        """
        self.forward_span(batch, pool, 0, len(self.config.blocks))

    def forward_span(self, batch: StepBatch, pool: Bytes, first: int, last: int) -> None:
        """Run blocks ``first … last - 1`` of the same batch; spans must be run in order, beginning at block 0."""
        for name in _BATCH_ARRAYS:
            _check(name, getattr(batch, name), np.dtype(np.int32), 1)
        if batch.first_rows is not None:
            _check("first_rows", batch.first_rows, np.dtype(np.int32), 1)
        _check("pool", pool, np.dtype(np.uint8), 2)
        if not pool.flags.writeable:
            raise ValueError("pool must be writable")
        places = (batch.slice_starts, batch.page_starts, batch.page_ids, batch.output_rows)
        adapters = _step_adapters(batch.adapters)
        self._chain.forward(batch.token_ids, batch.positions, *places, pool, first, last, adapters, batch.first_rows)

    def hidden(self) -> Float32:
        """The kept rows after the final norm, [R, hidden]: a read-only view, valid until the next forward."""
        return self._chain.hidden()

    def logits(self, first: int, count: int) -> Float32:
        """Logits of kept rows ``first … first + count``, [count, vocab]: a read-only view, valid until the next call."""
        return self._chain.logits(first, count)

    def greedy(self, first: int, count: int) -> Int32:
        """Arg-max token of each of those rows, the lowest id of equals; the logits are never stored."""
        tokens = np.empty(count, np.int32)
        self._chain.greedy(first, tokens)
        return tokens

    def _built(self, kv: KvFormat) -> Chain:
        config = self.config
        chain = Chain(config.hidden, config.vocab, config.context_length, config.norm_eps, config.embedding_scale, self._pool)
        layer = -1
        for spec in config.blocks:
            if isinstance(spec, AttentionSpec):
                layer += 1
                self._add_attention(chain, spec, layer, kv)
            else:
                self._add_mlp(chain, spec, f"layer.{layer}.mlp.")
        embedding = self._matrices["embedding"]
        chain.set_ends(embedding, self._matrices.get("head", embedding), {"norm": self._vector("final_norm")})
        return chain

    def _measured_heads(self) -> list[tuple[Float32, Float32]]:
        """Queries and keys of every layer over the sample, computed with pages in bf16."""
        batch = key_balance.sample_batch(self.config, PAGE_TOKENS)
        pool = np.zeros((len(batch.page_ids), self._chain.page_bytes), np.uint8)
        found = []
        for index, spec in enumerate(self.config.blocks):
            self.forward_span(batch, pool, index, index + 1)
            if isinstance(spec, AttentionSpec):
                heads = self._chain.finished_heads().reshape(len(batch.token_ids), -1, spec.head_dim)
                found.append((heads[:, : spec.heads], heads[:, spec.heads :]))
        return found

    def _add_attention(self, chain: Chain, spec: AttentionSpec, layer: int, kv: KvFormat) -> None:
        prefix = f"layer.{layer}.attention."
        names = ["norm"]
        names += ["q_norm", "k_norm"] if spec.qk_norm else []
        names += ["q_bias", "k_bias", "v_bias"] if spec.qkv_bias else []
        names += ["post_norm"] if spec.post_norm else []
        shape = AttentionShape.of(spec.heads, spec.kv_heads, spec.head_dim, spec.window or 0, 0, kv)
        qkv, output = self._matrices[prefix + "qkv"], self._matrices[prefix + "o"]
        vectors = self._vectors(prefix, names)
        if self._balances:
            vectors |= self._balances[layer].vectors()
        chain.add_attention(shape, spec.scale, inverse_frequencies(spec), qkv, output, vectors)

    def _add_mlp(self, chain: Chain, spec: MlpSpec, prefix: str) -> None:
        names = ["norm", "post_norm"] if spec.post_norm else ["norm"]
        gate_up, down = self._matrices[prefix + "gate_up"], self._matrices[prefix + "down"]
        chain.add_mlp(spec.inner, spec.activation, gate_up, down, self._vectors(prefix, names))

    def _vectors(self, prefix: str, names: list[str]) -> _Vectors:
        return {name: self._vector(prefix + name) for name in names}

    def _vector(self, name: str) -> Float32:
        return dequantise(self._weights.tensor(name)).reshape(-1)


def _pack_in_memory(config: ModelConfig, weights: WeightSource, pool: ThreadPool) -> Matrices:
    return {stack.name: matrix for stack, matrix in pack_all(config, weights, pool)}


def _checked_threads(threads: int) -> int:
    if not 1 <= threads <= MAX_THREADS:
        raise HeadraceError("invalid_setting", f"threads must lie in 1 … {MAX_THREADS}, not {threads}", param="threads")
    return threads


def _step_adapters(own: StepAdapters | None) -> NativeAdapters | None:
    if own is None:
        return None
    for name, dtype in (("starts", np.int32), ("ids", np.int32), ("scales", np.float32)):
        _check(f"adapters: {name}", getattr(own, name), np.dtype(dtype), 1)
    placed = [(one.pages, one.directory.places, one.directory.scales) for one in own.adapters]
    return NativeAdapters(own.starts, own.ids, own.scales, placed)


def _check(name: str, array: npt.NDArray[np.generic], dtype: np.dtype[np.generic], dimensions: int) -> None:
    if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be {dimensions}-dimensional {dtype.name}, C-contiguous")
