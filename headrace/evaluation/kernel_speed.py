"""Speed of the native matrix products alone, against what this machine can do at most, over the whole curve of row counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.evaluation.kernel_matrices import MatrixGroup, matrix_groups
from headrace.evaluation.load_report import import_pyplot
from headrace.kernels import _native
from headrace.kernels.formats import instruction_sets
from headrace.models.catalog import OpenModel
from headrace.settings.declaration import option, validate

ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_PEAK_ROUNDS = 10_000
_TRIALS = 5


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """What to measure or compare."""

    mode: str = option(
        "perf",
        choices=("perf", "compare", "support", "adapters"),
        help="perf: speed against the machine's limits; compare: every instruction set against the portable one; "
        "support: what is built and runs here; adapters: what low-rank adapters add to a step of 32 rows.",
    )
    model: str = option("smollm2", help="Model whose matrices are multiplied.")
    threads: int = option(1, minimum=1, maximum=256, help="Compute threads (perf).")
    rows: tuple[int, ...] = option(ROW_COUNTS, unit="rows", minimum=1, maximum=4096, help="Rows of activations (perf).")
    isa: tuple[str, ...] = option(("auto",), help="Instruction sets; `all`: every one that runs here (perf).")
    seconds: float = option(0.1, unit="s", minimum=0.001, maximum=60, help="Time for one cell (perf).")
    panels: int = option(8, minimum=1, maximum=4096, help="Panels of 16 outputs in a product of 16 rows or more (compare).")

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True)
class KernelSpeed:
    """One cell. Rates in 10⁹ a second; ``seconds`` of one product, the fastest of a few passes.

    ``limit``: share of the machine's limit, from 0 to 1, both measured in the same turns. ``bound`` says by what:
    ``compute`` (the product instructions on registers alone) or ``memory`` (only reading the same matrices).
    """

    isa: str
    role: str
    formats: str
    columns: int
    inputs: int
    rows: int
    seconds: float
    gmacs: float
    gigabytes: float
    bound: str
    limit: float


def chosen_isas(names: Sequence[str]) -> list[str]:
    """The instruction sets that ``names`` mean. Raises ``invalid_setting`` for one that doesn't run here."""
    support = {row.name: row for row in instruction_sets()}
    if "all" in names:
        return [row.name for row in support.values() if row.runnable and row.automatic]
    chosen = [_native.isa() if name == "auto" else name for name in names]
    for name in chosen:
        if name not in support:
            known = ", ".join(["auto", "all", *support])
            raise HeadraceError("invalid_setting", f"isa {name!r} is unknown; there are {known}", param="isa")
        if not support[name].runnable:
            raise HeadraceError("invalid_setting", f"isa {name!r} does not run here: {support[name].lacking}", param="isa")
    return list(dict.fromkeys(chosen))


def measure(model: OpenModel, settings: KernelSettings, report: Callable[[str, int, int], None]) -> Iterator[KernelSpeed]:
    """Multiply the model's matrices by rows of noise, for each instruction set; the one in use is put back afterwards."""
    pool, before = _native.ThreadPool(settings.threads), _native.isa()
    isas = chosen_isas(settings.isa)
    groups = matrix_groups(model, pool)
    cells = [(isa, group, rows) for isa in isas for group in groups for rows in settings.rows]
    try:
        for number, (isa, group, rows) in enumerate(cells):
            report("measuring", number, len(cells))
            _native.set_isa(isa)
            yield _Cell(group, rows, pool).measure(isa, settings.seconds)
    finally:
        _native.set_isa(before)


class _Cell:
    """One group of matrices times one number of rows."""

    def __init__(self, group: MatrixGroup, rows: int, pool: _native.ThreadPool) -> None:
        self._group, self._rows, self._pool = group, rows, pool
        self._noise = np.random.default_rng(rows).standard_normal((rows, group.inputs), dtype=np.float32)

    def measure(self, isa: str, seconds: float) -> KernelSpeed:
        """Product, reading and peak take turns; the best of each counts."""
        group = self._group
        one = _native.time_products(group.matrices[:1], self._noise, self._pool, 1)
        # Many rows compute for long on each matrix: then a few of the matrices are enough to spend the time.
        used = group.matrices[: max(1, min(len(group.matrices), int(seconds / _TRIALS / max(one, 1e-7))))]
        repeat = max(1, int(seconds / _TRIALS / (max(one, 1e-7) * len(used))))
        product = reading = math.inf
        peak = 0.0
        for _ in range(_TRIALS):
            product = min(product, _native.time_products(used, self._noise, self._pool, repeat) / (repeat * len(used)))
            reading = min(reading, _native.time_reads(used, self._pool, repeat) / (repeat * len(used)))
            peak = max(peak, self._peak())
        macs = self._rows * group.columns * group.inputs
        planes = 1 if group.activation_bits == 32 else group.activation_bits // 8  # byte products of one multiply-add
        computing = macs * planes / peak
        return KernelSpeed(
            isa=isa, role=group.role, formats=group.formats, columns=group.columns, inputs=group.inputs, rows=self._rows,
            seconds=product, gmacs=macs / product / 1e9, gigabytes=group.matrices[0].bytes / product / 1e9,
            bound="compute" if computing > reading else "memory", limit=max(computing, reading) / product,
        )  # fmt: skip

    def _peak(self) -> float:
        kind = "floats" if self._group.activation_bits == 32 else "bytes"
        return max(_native.peak_rate(kind, self._pool, _PEAK_ROUNDS) for _ in range(2))


def plot(speeds: Sequence[KernelSpeed], file: Path) -> None:
    """Draw rate and share of the limit over the rows. Raises ``invalid_setting`` without the extra ``plot``."""
    pyplot = import_pyplot()
    figure, (rate, share) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for isa, role, formats in dict.fromkeys((s.isa, s.role, s.formats) for s in speeds):
        line = [s for s in speeds if (s.isa, s.role, s.formats) == (isa, role, formats)]
        label = f"{isa} {role} {line[0].columns}×{line[0].inputs} {formats}"
        rate.plot([s.rows for s in line], [s.gmacs for s in line], marker="o", label=label)
        share.plot([s.rows for s in line], [100 * s.limit for s in line], marker="o", label=label)
    for axes, what in ((rate, "GMAC/s"), (share, "% of the machine's limit")):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="rows", ylabel=what)
        axes.grid(alpha=0.3)
    share.set_ylim(0, 105)
    rate.legend(fontsize=7)
    figure.savefig(file)
    pyplot.close(figure)
