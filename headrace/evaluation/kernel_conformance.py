"""Conformance of the native matrix products: every instruction set against the portable one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.evaluation.kernel_matrices import MatrixGroup, matrix_groups
from headrace.kernels import _native
from headrace.kernels.formats import runnable_instruction_sets, source_kinds
from headrace.kernels.packing import pack
from headrace.models.catalog import OpenModel
from headrace.models.integer_rows import GROUP_OF_KIND, sample_rows
from headrace.models.weights import BYTE_ROWS, RawTensor

ROWS = (1, 3, 4, 15, 16, 17, 64, 257)
THREADS = (1, 2)
_REFERENCE = "portable"
# Where a block keeps its fp16 scales (first byte, bytes), for blocks of one repeated code under chosen scales.
_SCALES = {"Q4_0": (0, 2), "Q4_1": (0, 4), "Q5_0": (0, 2), "Q5_1": (0, 4), "Q8_0": (0, 2), "Q4_K": (0, 4), "Q6_K": (208, 2)}
_CODES = (0x00, 0x7F, 0x80, 0xFF)
_HALVES = (0x0001, 0x3C00, 0x7BFF, 0xFBFF)  # smallest subnormal, 1, largest, most negative
_SMALLER_HALVES = (0x0001, 0x3C00, 0x4000, 0xBC00)  # where packing multiplies scales by small integers
_MULTIPLIED = ("Q4_0", "Q4_K", "Q6_K")

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Conformance:
    """One instruction set on one matrix: ``products`` compared (row counts × threads), ``mismatches`` outputs that differ."""

    isa: str
    what: str
    formats: str
    columns: int
    inputs: int
    products: int
    outputs: int
    mismatches: int


@dataclass(frozen=True, slots=True)
class _Case:
    what: str
    matrix: _native.PackedMatrix
    rows: tuple[int, ...]


def compare(
    model: OpenModel, panels: int, report: Callable[[str, int, int], None], isas: Sequence[str] = ()
) -> Iterator[Conformance]:
    """Compare every runnable instruction set (or ``isas``) with the portable one, which runs on one thread.

    The model's own matrices, whole for up to 4 rows and cut to ``panels`` panels above (a panel doesn't know the others);
    then every packable kind over every width of the model, with random codes, and with extreme codes and scales.
    The instruction set in use is put back afterwards.
    """
    pools, before = [_native.ThreadPool(threads) for threads in THREADS], _native.isa()
    names = list(isas) or [name for name in runnable_instruction_sets() if name != _REFERENCE]
    widths = set[int]()
    try:
        groups = matrix_groups(model, pools[-1])
        cases = [case for group in groups for case in _of_model(model, group, panels, pools[-1])]
        widths |= {group.inputs for group in groups}
        del groups
        cases += [case for width in sorted(widths) for kind in source_kinds() for case in _of_kind(kind, width, panels, pools[-1])]
        for number, case in enumerate(cases):
            report("comparing", number, len(cases))
            yield from _compare(case, [*names, _REFERENCE], pools)
    finally:
        _native.set_isa(before)


def _of_model(model: OpenModel, group: MatrixGroup, panels: int, pool: _native.ThreadPool) -> Iterator[_Case]:
    few = tuple(rows for rows in ROWS if rows <= 4)
    yield _Case(group.role, group.matrices[0], few)
    tensors = [_head_of(model.weights.tensor(name), panels * 16 // len(group.names[0])) for name in group.names[0]]
    interleave = group.matrices[0].interleaved
    yield _Case(f"{group.role}, cut", pack(tensors, pool, interleave=interleave), tuple(rows for rows in ROWS if rows > 4))


def _head_of(tensor: RawTensor, rows: int) -> RawTensor:
    """The first stored rows of a matrix."""
    count = max(1, min(rows, tensor.rows))
    return RawTensor(tensor.kind, (count, tensor.shape[1]), tensor.data[: count * tensor.row_bytes])


def _of_kind(kind: str, width: int, panels: int, pool: _native.ThreadPool) -> Iterator[_Case]:
    source = source_kinds()[kind]
    blocks, outputs = -(-width // source.block), 16 * min(panels, 3) + 5
    shape, rng = (outputs, blocks * source.block), np.random.default_rng(width)
    if kind in GROUP_OF_KIND:  # random codes and scales whose sums stay inside 32 bits: others are refused when packing
        yield _Case(f"{kind}, random", pack([RawTensor(kind, shape, sample_rows(kind, *shape, rng))], pool), ROWS)
        return
    # One bit of each byte is cleared: then no bit pattern is an infinite scale, in any encoding.
    data = rng.integers(0, 256, (outputs * blocks, source.block_bytes), dtype=np.uint8) & np.uint8(0xBF)
    yield _Case(f"{kind}, random", pack([RawTensor(kind, shape, data.reshape(-1))], pool), ROWS)
    encoding = kind.removesuffix(BYTE_ROWS)
    if encoding in _SCALES:
        yield _Case(f"{kind}, extreme", pack([RawTensor(kind, shape, _extremes(encoding, data).reshape(-1))], pool), ROWS)


def _extremes(kind: str, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Blocks of one repeated code each, under scales at the ends of fp16's range."""
    first, size = _SCALES[kind]
    made = np.empty_like(blocks)
    made[:] = np.resize(np.array(_CODES, np.uint8), len(blocks))[:, None]
    values = _SMALLER_HALVES if kind in _MULTIPLIED else _HALVES
    halves = np.resize(np.array(values, np.uint16), (len(blocks) * 3 // 4 + 1) * size // 2 * 2)
    made[:, first : first + size] = np.resize(halves.view(np.uint8), (len(blocks), size))
    return made


def rows_of_every_kind(count: int, inputs: int, rng: np.random.Generator) -> Float32:
    """Normal rows; among the first: zero, one spike, all equal, alternating, tiny, huge."""
    x = rng.standard_normal((count, inputs), dtype=np.float32)
    x[1] = 0
    x[2] = 0
    x[2, inputs // 2] = -3
    x[3] = 2
    x[4] = np.where(np.arange(inputs) % 2, -5, 5)
    x[5] *= np.float32(1e-32)
    x[6] *= np.float32(1e20)
    return x


def _compare(case: _Case, isas: Sequence[str], pools: Sequence[_native.ThreadPool]) -> Iterator[Conformance]:
    matrix, x = case.matrix, rows_of_every_kind(max(ROWS), case.matrix.inputs, np.random.default_rng(case.matrix.inputs))
    _native.set_isa(_REFERENCE)
    wanted = _bits(matrix.matmul(x[: max(case.rows)], pools[0]))
    for isa in isas:
        _native.set_isa(isa)
        got = [_bits(matrix.matmul(x[:rows], pool)) for rows in case.rows for pool in pools]
        wrong = sum(int(np.count_nonzero(bits != wanted[: len(bits)])) for bits in got)
        formats = "+".join(dict.fromkeys(matrix.formats))
        outputs = sum(bits.size for bits in got)
        yield Conformance(isa, case.what, formats, matrix.columns, matrix.inputs, len(got), outputs, wrong)


def _bits(values: Float32) -> npt.NDArray[np.uint32]:
    """The bits of a product; a not-a-number is one value whatever its payload."""
    return np.ascontiguousarray(np.where(np.isnan(values), np.float32(np.nan), values), np.float32).view(np.uint32)
