"""The knee: how many rows a step should aim at, measured at start and remembered for this machine, model and version.

DeepSpeed-FastGen's Dynamic SplitFuse runs steps of one size, at the knee where throughput stops to grow, and picked that size
by hand. Here it is measured: steps of growing size, until more rows bring no more rows a second.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.errors import HeadraceError
from headrace.kernels.interface import Bytes, ChainRunner, StepBatch
from headrace.scheduling.cost import Cost

logger = logging.getLogger("headrace.engine.calibration")

SIZES = (1, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SECONDS = 2.4
KNEE_SHARE = 0.95  # of the best throughput seen
_FORMAT = 1
LEAST_KNEE = 16


@dataclass(frozen=True, slots=True)
class Calibration:
    """``knee``: rows a step aims at. ``cost``: a Cost taught by the measured steps."""

    knee: int
    cost: Cost


def calibrate(chain: ChainRunner, pages: Bytes, seconds: float = SECONDS) -> Calibration:
    """Measure steps of growing size for about ``seconds``; overwrites the first pages, so nothing may run yet.

    Sizes take turns and the shortest time of each counts: what else the machine does then disturbs all alike.
    """
    limit = min(len(pages) * chain.page_layout.tokens, chain.config.context_length)
    _measure(chain, pages, 1)  # first touch of buffers and code
    ends = time.perf_counter() + seconds
    times = {size: _measure(chain, pages, size) for size in _growing(chain, pages, limit, seconds / 3)}
    while time.perf_counter() + sum(times.values()) < ends:
        for size, best in times.items():
            times[size] = min(best, _measure(chain, pages, size))
    cost = Cost()
    for size, best in times.items():
        cost.observe(size, size * (size + 1) // 2, 1, best)
    _teach_head_and_context(chain, pages, cost, min(limit, max(times)))
    return Calibration(_knee({size: size / best for size, best in times.items()}), cost)


def _growing(chain: ChainRunner, pages: Bytes, limit: int, seconds: float) -> Iterator[int]:
    """Sizes to measure, until one round of them takes ``seconds``."""
    began = time.perf_counter()
    for size in SIZES:
        if size <= limit:
            yield size
        if time.perf_counter() - began > seconds:
            return


def _knee(rates: Mapping[int, float]) -> int:
    """The smallest measured size whose throughput is within 5 % of the best."""
    best = max(rates.values())
    return max(LEAST_KNEE, min(size for size, rate in rates.items() if rate >= KNEE_SHARE * best))


def _teach_head_and_context(chain: ChainRunner, pages: Bytes, cost: Cost, limit: int) -> None:
    """Steps that tell the cost of head rows and of long contexts from that of rows."""
    tokens = chain.page_layout.tokens
    for rows in (8, 32):
        if rows <= limit:
            cost.observe(rows, rows * (rows + 1) // 2, rows, _measure(chain, pages, rows, rows))
    for size, length in ((16, 1024), (16, 2048)):
        if length + size <= min(len(pages) * tokens, chain.config.context_length):
            cost.observe(size, size * length + size * (size + 1) // 2, 1, _measure(chain, pages, size, 1, length))


def _measure(chain: ChainRunner, pages: Bytes, size: int, rows: int = 1, start: int = 0) -> float:
    """Seconds of one step: ``size`` rows of one sequence from position ``start``, ``rows`` of them through the head."""
    held = -(-(start + size) // chain.page_layout.tokens)
    batch = StepBatch(
        token_ids=np.arange(size, dtype=np.int32) % np.int32(chain.config.vocab),
        positions=np.arange(start, start + size, dtype=np.int32),
        slice_starts=np.array([0, size], np.int32),
        page_starts=np.array([0, held], np.int32),
        page_ids=np.arange(held, dtype=np.int32),
        output_rows=np.arange(size - rows, size, dtype=np.int32),
    )
    began = time.perf_counter()
    chain.forward(batch, pages)
    chain.greedy(0, rows)
    return time.perf_counter() - began


def store_path(folder: Path, identity: Mapping[str, object]) -> Path:
    """Where the calibration for this ``identity`` (machine, model, threads, version …) is kept."""
    text = json.dumps(dict(identity), sort_keys=True, default=str)
    return folder / "calibration" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def load(path: Path) -> Calibration | None:
    """A stored calibration, ``None`` when there is none that can be used."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != _FORMAT or not isinstance(data.get("knee"), int):
            raise ValueError("unknown form")
        if not LEAST_KNEE <= data["knee"] <= SIZES[-1]:
            raise ValueError("knee out of bounds")
        return Calibration(data["knee"], Cost.from_dict(data["cost"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, HeadraceError) as error:
        logger.warning("stored calibration is not usable and is measured again: %s", error)
        return None


def save(path: Path, calibration: Calibration) -> None:
    """Store a calibration whole or not at all; a folder that can't be written only costs the next start its measuring."""
    data = {"format": _FORMAT, "knee": calibration.knee, "cost": calibration.cost.to_dict()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            json.dump(data, file)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("the calibration can't be stored: %s", error)
