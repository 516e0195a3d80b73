"""Measures the packed products alone: multiply rate and weight bytes read, by format, shape and row count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.errors import HeadraceError
from headrace.kernels import _native
from headrace.kernels.formats import source_kinds
from headrace.kernels.packing import pack
from headrace.models.integer_rows import GROUP_OF_KIND, sample_rows
from headrace.models.weights import RawTensor

ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# More than a last-level cache keeps for one guest, so that few-row products read memory as a decode step does.
STREAM_BYTES = 96 << 20
TRIALS = 3


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One measured product: ``rows`` activations × a matrix [``outputs``, ``inputs``] of encoding ``kind``.

    ``seconds`` of one product (best of a few trials), ``gmacs`` 10⁹ multiply-adds a second, ``gigabytes`` 10⁹ bytes of
    packed weights a second, read from memory and not from a cache.
    """

    kind: str
    format: str
    isa: str
    outputs: int
    inputs: int
    rows: int
    threads: int
    seconds: float
    gmacs: float
    gigabytes: float


def kernel_table_rows(
    shapes: Sequence[tuple[int, int]],
    kinds: Sequence[str],
    *,
    rows: Sequence[int] = ROW_COUNTS,
    threads: int = 1,
    seconds: float = 0.1,
) -> list[KernelRow]:
    """Measure every combination; ``shapes`` are (outputs, inputs), ``seconds`` the time spent on one cell.

    Raises ``invalid_setting`` for an unknown kind or an inputs size that its blocks don't divide.
    """
    known = source_kinds()
    for kind in kinds:
        if kind not in known:
            raise HeadraceError(
                "invalid_setting", f"no kernels for weights of kind {kind!r}; known: {', '.join(known)}", param="kinds"
            )
    pool = _native.ThreadPool(threads)
    table: list[KernelRow] = []
    for kind in kinds:
        for outputs, inputs in shapes:
            if inputs % known[kind].block:
                message = f"{kind} needs inputs in multiples of {known[kind].block}, not {inputs}"
                raise HeadraceError("invalid_setting", message, param="shapes")
            matrices = _copies(kind, outputs, inputs, pool)
            table.extend(_measure(kind, (outputs, inputs), matrices, count, pool, seconds) for count in rows)
    return table


def _copies(kind: str, outputs: int, inputs: int, pool: _native.ThreadPool) -> list[_native.PackedMatrix]:
    if kind in GROUP_OF_KIND:
        tensor = RawTensor(kind, (outputs, inputs), sample_rows(kind, outputs, inputs, np.random.default_rng(0)))
    else:
        tensor = _random_blocks(kind, outputs, inputs)
    first = pack([tensor], pool)
    return [first] + [pack([tensor], pool) for _ in range(min(512, STREAM_BYTES // first.bytes))]


def _random_blocks(kind: str, outputs: int, inputs: int) -> RawTensor:
    source = source_kinds()[kind]
    size = outputs * (inputs // source.block) * source.block_bytes
    # One bit of each byte is cleared: then no bit pattern is an infinite scale, in any encoding.
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8) & np.uint8(0xBF)
    return RawTensor(kind, (outputs, inputs), data)


def _measure(
    kind: str, shape: tuple[int, int], matrices: list[_native.PackedMatrix], count: int, pool: _native.ThreadPool, seconds: float
) -> KernelRow:
    outputs, inputs = shape
    x = np.random.default_rng(1).normal(size=(count, inputs)).astype(np.float32)
    # Many rows compute for long on each matrix: a few of the copies are enough to spend the time.
    one = _native.time_products(matrices[:1], x, pool, 1)
    used = matrices[: max(1, min(len(matrices), int(seconds / max(one, 1e-7))))]
    repeat = max(1, int(seconds / TRIALS / (max(one, 1e-7) * len(used))))
    best = min(_native.time_products(used, x, pool, repeat) for _ in range(TRIALS)) / (repeat * len(used))
    return KernelRow(
        kind=kind,
        format=matrices[0].formats[0],
        isa=_native.isa(),
        outputs=outputs,
        inputs=inputs,
        rows=count,
        threads=pool.threads,
        seconds=best,
        gmacs=count * outputs * inputs / best / 1e9,
        gigabytes=matrices[0].bytes / best / 1e9,
    )
