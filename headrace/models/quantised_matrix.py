"""Matrices with integer group scales: what `headrace quantize` writes and every runner reads.

Progressive group quantisation follows QServe ("W4A8KV4 quantization and system co-design", Lin et al.): an output channel is
first a row of integers times one float, and its groups are then 4-bit codes of *these integers*, so that a whole dot product
is integer arithmetic with one float step at its end.

::

    4 bits: value[n, k] = channel_scales[n] · (code[n, k] · group_scales[n, k // group] − group_zeros[n, k // group])
    8 bits: value[n, k] = channel_scales[n] · code[n, k]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.models.fields import Fields
from headrace.models.files import refuse
from headrace.models.integer_rows import ACTIVATION_BITS, GROUPS, encode_nibbles, kind_name, nibble_integers
from headrace.models.safetensors_file import StoredTensor, parse_json
from headrace.models.weights import RawTensor

METADATA_KEY = "headrace_quantisation"
VERSION = 1
MAX_ACTIVATION = 128  # of one byte plane, in absolute value
MAX_ACCUMULATOR = 2**31 - 1
MAX_METADATA_CHARACTERS = 1 << 20

_PARTS = {"codes": ("U8", "I8"), "group_scales": ("U8",), "group_zeros": ("I16",), "channel_scales": ("F32",)}
_DTYPES = {"U8": np.uint8, "I8": np.int8, "I16": np.int16, "F32": np.float32}


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedMatrix:
    """One matrix [outputs N, inputs K] of integer codes; raises ``model_file`` for parts that don't belong together.

    ``codes``: uint8 [N, K/2] of 4-bit codes, the low nibble is the even input; or int8 [N, K].
    ``group_scales`` uint8 and ``group_zeros`` int16, both [N, ceil(K/group)]: of 4-bit codes only (``None`` with int8).
    ``channel_scales``: float32 [N], finite. ``group``: 32, 64 or 128 inputs (0 with int8); K is a multiple of 32, and where
    ``group`` does not divide it the last group is shorter. ``activation_bits``: 8 or 16, what rows are multiplied in.
    Products accumulate in int32: 128 · sum of a channel's absolute integer weights must stay below 2³¹.
    """

    name: str
    codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    group_scales: npt.NDArray[np.uint8] | None
    group_zeros: npt.NDArray[np.int16] | None
    channel_scales: npt.NDArray[np.float32]
    group: int
    activation_bits: int

    def __post_init__(self) -> None:
        _check_codes(self)
        _check_accumulator(self)

    @property
    def bits(self) -> int:
        """Bits of one code: 4 or 8."""
        return 4 if self.codes.dtype == np.uint8 else 8

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.codes.shape[0], self.codes.shape[1] * (8 // self.bits)

    def integers(self, first: int = 0, last: int | None = None) -> npt.NDArray[np.int32]:
        """The integer weights [last − first, K] that a channel's scale multiplies."""
        if self.group_scales is None or self.group_zeros is None:
            return self.codes[first:last].astype(np.int32)
        return nibble_integers(
            self.codes[first:last].view(np.uint8), self.group_scales[first:last], self.group_zeros[first:last], self.group
        )

    def values(self) -> npt.NDArray[np.float32]:
        """The weights [N, K] as float32."""
        return np.asarray(self.integers().astype(np.float32) * self.channel_scales[:, None])

    def encode(self) -> RawTensor:
        """The matrix as one tensor of encoded rows; see :mod:`headrace.models.integer_rows`."""
        rows, inputs = self.shape
        head = np.ascontiguousarray(self.channel_scales, "<f4").view(np.uint8).reshape(rows, 4)
        codes = np.ascontiguousarray(self.codes).view(np.uint8)
        if self.group_scales is not None and self.group_zeros is not None:
            codes = encode_nibbles(codes, self.group_scales, self.group_zeros, self.group)
        data = np.concatenate([head, codes], axis=1).reshape(-1)
        return RawTensor(kind_name(self.group, self.activation_bits), (rows, inputs), data)

    def parts(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays by their name in a file."""
        found: dict[str, npt.NDArray[np.generic] | None] = {part: getattr(self, part) for part in _PARTS}
        return {f"{self.name}.{part}": values for part, values in found.items() if values is not None}


@dataclass(frozen=True, slots=True)
class MatrixForm:
    """Of one matrix: ``group`` of its 4-bit codes (0: it has 8-bit codes) and ``activation_bits``."""

    group: int
    activation_bits: int


@dataclass(frozen=True, slots=True)
class QuantisationInfo:
    """How a folder's matrices were quantised: the JSON under :data:`METADATA_KEY` of its safetensors metadata.

    ``method``: the recipe in a few words. ``source_digest``: SHA-256 of the source model's file, in hex.
    ``group``, ``activation_bits``: of every matrix that ``forms`` does not name.
    """

    method: str
    group: int
    activation_bits: int
    source_digest: str
    forms: Mapping[str, MatrixForm] = field(default_factory=dict)

    def form(self, name: str) -> MatrixForm:
        """Group and activation bits of one matrix."""
        return self.forms.get(name, MatrixForm(self.group, self.activation_bits))

    def to_json(self) -> str:
        """The metadata's text."""
        forms = {name: [form.group, form.activation_bits] for name, form in sorted(self.forms.items())}
        own = {"method": self.method, "group": self.group, "activation_bits": self.activation_bits}
        return json.dumps({"version": VERSION, **own, "source_digest": self.source_digest, "forms": forms})


def read_info(text: str) -> QuantisationInfo:
    """Read the metadata's text. Raises ``model_file`` for another version or a field that is missing or wrong."""
    if len(text) > MAX_METADATA_CHARACTERS:
        raise refuse(f"metadata {METADATA_KEY!r} has {len(text)} characters, the limit is {MAX_METADATA_CHARACTERS}")
    fields = Fields(parse_json(text.encode(), METADATA_KEY), METADATA_KEY)
    version = fields.integer("version", 1, 1 << 30)
    if version != VERSION:
        raise refuse(f"{METADATA_KEY} is of version {version}, this headrace reads {VERSION}")
    forms = fields.group("forms").values
    return QuantisationInfo(
        method=fields.text("method"), group=fields.integer("group", 0, GROUPS[-1]),
        activation_bits=fields.integer("activation_bits", 8, 16), source_digest=fields.text("source_digest"),
        forms={name: _read_form(name, form) for name, form in forms.items()},
    )  # fmt: skip


def _read_form(name: str, form: object) -> MatrixForm:
    if not isinstance(form, list) or len(form) != 2 or any(type(value) is not int for value in form):
        raise refuse(f"{METADATA_KEY} has no [group, activation bits] for {name[:128]!r}")
    return MatrixForm(*form)


def part_names(name: str) -> set[str]:
    """Names of the tensors that a matrix of that name may consist of."""
    return {f"{name}.{part}" for part in _PARTS}


def read_matrix(name: str, tensors: Mapping[str, StoredTensor], form: MatrixForm) -> QuantisedMatrix:
    """The matrix ``name`` of a file: its parts as views, checked. Raises ``model_file`` when they don't belong together."""
    found: dict[str, Any] = {}
    for part, kinds in _PARTS.items():
        tensor = tensors.get(f"{name}.{part}")
        if tensor is None:
            continue
        if tensor.kind not in kinds:
            raise refuse(f"tensor {tensor.name[:128]!r} is of kind {tensor.kind}, it must be {' or '.join(kinds)}")
        found[part] = tensor.data.view(_DTYPES[tensor.kind]).reshape(tensor.shape)
    if "codes" not in found or "channel_scales" not in found:
        raise refuse(f"quantised matrix {name[:128]!r} lacks its codes or channel_scales")
    group = form.group if found["codes"].dtype == np.uint8 else 0
    return QuantisedMatrix(
        name,
        found["codes"],
        found.get("group_scales"),
        found.get("group_zeros"),
        found["channel_scales"],
        group,
        form.activation_bits,
    )


def _check_codes(matrix: QuantisedMatrix) -> None:
    """Kinds and shapes of all parts, so that nothing later needs to ask."""
    if matrix.codes.ndim != 2 or matrix.codes.dtype not in (np.uint8, np.int8):
        raise _refuse(matrix, "codes must be uint8 [outputs, inputs / 2] or int8 [outputs, inputs]")
    rows, inputs = matrix.shape
    if not rows or not inputs or inputs % 32:
        raise _refuse(matrix, f"needs outputs and a multiple of 32 inputs, the shape is {rows} x {inputs}")
    if matrix.activation_bits not in ACTIVATION_BITS:
        raise _refuse(matrix, f"activation_bits must be 8 or 16, not {matrix.activation_bits}")
    _check_part(matrix, "channel_scales", np.float32, (rows,))
    if not np.isfinite(matrix.channel_scales).all():
        raise _refuse(matrix, "channel_scales has a value that is infinite or not a number")
    if matrix.bits == 4:
        if matrix.group not in GROUPS:
            raise _refuse(matrix, f"group must be one of {', '.join(map(str, GROUPS))}, not {matrix.group}")
        groups = (rows, -(-inputs // matrix.group))
        _check_part(matrix, "group_scales", np.uint8, groups)
        _check_part(matrix, "group_zeros", np.int16, groups)
    elif matrix.group or matrix.group_scales is not None or matrix.group_zeros is not None:
        raise _refuse(matrix, "8-bit codes have no groups")


def _check_part(matrix: QuantisedMatrix, part: str, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    values = getattr(matrix, part)
    if values is None or values.dtype != dtype or values.shape != shape:
        actual = "missing" if values is None else f"{values.dtype} {list(values.shape)}"
        raise _refuse(matrix, f"{part} must be {np.dtype(dtype)} {list(shape)}, it is {actual}")


def _check_accumulator(matrix: QuantisedMatrix) -> None:
    if matrix.bits == 8 and 128 * matrix.shape[1] * MAX_ACTIVATION <= MAX_ACCUMULATOR:
        return
    step = max(1, (1 << 22) // matrix.shape[1])
    for first in range(0, matrix.shape[0], step):
        sums = np.abs(matrix.integers(first, first + step)).sum(axis=1, dtype=np.int64)
        if int(sums.max(initial=0)) * MAX_ACTIVATION > MAX_ACCUMULATOR:
            channel = first + int(sums.argmax())
            raise _refuse(matrix, f"products of channel {channel} could leave 32 bits: its integer weights sum to {sums.max()}")


def _refuse(matrix: QuantisedMatrix, message: str) -> HeadraceError:
    return refuse(f"quantised matrix {matrix.name[:128]!r}: {message}")
