"""What the native kernels can compute with: runtime weight formats, encodings they are packed from, instruction sets."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.kernels import _native


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A runtime format of packed weights.

    ``bits`` of one code, ``group`` inputs sharing a scale (1: none), ``record_bytes`` of 16 outputs × one group,
    ``has_minimum``: groups have a minimum or zero beside their scale, ``activation_bits``: of the rows that it is multiplied
    with (32: floats).
    """

    name: str
    bits: int
    group: int
    record_bytes: int
    has_minimum: bool
    activation_bits: int


@dataclass(frozen=True, slots=True)
class SourceKind:
    """An encoding of a model file that can be packed: ``block`` inputs take ``block_bytes`` and become ``format``."""

    name: str
    block: int
    block_bytes: int
    format: str


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One variant of every kernel; ``compiled`` into this build, ``runnable`` on this machine.

    ``automatic``: chosen by itself where it is the best; the others (``amx-emulated``, which computes with a model of the
    tile unit) are for tests. ``lacking``: why it is not runnable.
    """

    name: str
    compiled: bool
    runnable: bool
    automatic: bool
    lacking: str


def weight_formats() -> dict[str, WeightFormat]:
    """Every runtime format by name."""
    return {row[0]: WeightFormat(*row) for row in _native.format_traits()}


def source_kinds() -> dict[str, SourceKind]:
    """Every encoding that can be packed, by its name in the GGUF tables."""
    return {row[0]: SourceKind(*row) for row in _native.source_kinds()}


def instruction_sets() -> list[InstructionSet]:
    """The variants of the kernels, best first."""
    return [InstructionSet(*row) for row in _native.isa_support()]


def runnable_instruction_sets() -> list[str]:
    """Names of the variants that this machine can execute, best first, then those for tests; all compute the same bits."""
    return [isa.name for isa in instruction_sets() if isa.runnable]
