"""Speed of the native matrix products alone, on the matrices of a real model, for each instruction set of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from headrace.kernels import _native
from headrace.kernels.packing import pack
from headrace.models.catalog import OpenModel
from headrace.models.config import MlpSpec
from headrace.settings.declaration import option, validate


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """What to measure."""

    model: str = option("smollm2", help="Model whose matrices are multiplied.")
    threads: int = option(1, minimum=1, maximum=256, help="Compute threads.")
    rows: tuple[int, ...] = option((1, 4, 16, 64), unit="rows", minimum=1, maximum=4096, help="Rows of activations.")
    repeat: int = option(3, minimum=1, maximum=1000, help="Passes over all matrices; the fastest one counts.")

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True)
class KernelSpeed:
    """One measurement: the fastest pass over all gate and up matrices of the model."""

    isa: str
    rows: int
    seconds: float
    operations_per_second: float
    bytes_per_second: float


def usable_isas() -> tuple[str, ...]:
    """Instruction sets that are built and that this CPU has, best first."""
    return tuple(name for name, _, runnable, automatic, _ in _native.isa_support() if runnable and automatic)


def measure(model: OpenModel, settings: KernelSettings, report: Callable[[str, int, int], None]) -> Iterator[KernelSpeed]:
    """Multiply the model's gate and up matrices (together larger than a cache) by rows of noise.

    The instruction set in use is put back afterwards.
    """
    layers = sum(isinstance(block, MlpSpec) for block in model.config.blocks)
    pool = _native.ThreadPool(settings.threads)
    names = [(f"layer.{layer}.mlp.gate", f"layer.{layer}.mlp.up") for layer in range(layers)]
    matrices = [pack([model.weights.tensor(name) for name in pair], pool) for pair in names]
    size = sum(matrix.bytes for matrix in matrices)
    products = sum(matrix.inputs * matrix.columns for matrix in matrices)
    rng, before, isas = np.random.default_rng(0), _native.isa(), usable_isas()
    try:
        for number, isa in enumerate(isas):
            _native.set_isa(isa)
            for position, rows in enumerate(settings.rows):
                report("measuring", number * len(settings.rows) + position, len(isas) * len(settings.rows))
                noise = rng.standard_normal((rows, model.config.hidden), dtype=np.float32)
                seconds = min(_native.time_products(matrices, noise, pool, 1) for _ in range(settings.repeat))
                yield KernelSpeed(isa, rows, seconds, 2 * products * rows / seconds, size / seconds)
    finally:
        _native.set_isa(before)
