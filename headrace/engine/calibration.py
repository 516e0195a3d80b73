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
from headrace.scheduling.composer import ROW_TILE
from headrace.scheduling.cost import Cost
from headrace.scheduling.knee import CONTEXT_STEPS, KNEE_STEPS, LARGEST, CalibrationStep, StepSample, find_knee

logger = logging.getLogger("headrace.engine.calibration")

SECONDS = 2.4
_FORMAT = 5


@dataclass(frozen=True, slots=True)
class Calibration:
    """``knee``: rows a step aims at; ``knee_seconds``: how long such a step takes. ``cost``: taught by the measured steps."""

    knee: int
    knee_seconds: float
    cost: Cost


def calibrate(chain: ChainRunner, pages: Bytes, seconds: float = SECONDS) -> Calibration:
    """Measure steps of growing size for about ``seconds``; overwrites the first pages, so nothing may run yet.

    Sizes take turns and the shortest time of each counts: what else the machine does then disturbs all alike. Growing ends
    early, because many rounds of small sizes tell more than one large step.
    """
    _measure(chain, pages, KNEE_STEPS[0])  # first touch of buffers and code
    ends = time.perf_counter() + seconds
    times = {step: _measure(chain, pages, step) for step in _growing(chain, pages, seconds / 8)}
    context = [step for step in CONTEXT_STEPS if _fits(step, chain, pages)]
    sizes = list(times)
    times |= {step: _measure(chain, pages, step) for step in context}
    while time.perf_counter() + sum(times.values()) < ends:
        for step, best in times.items():
            times[step] = min(best, _measure(chain, pages, step))
    cost = Cost()
    for step, best in times.items():
        cost.observe(step.tokens, step.pairs, step.slices, best)
    knee = find_knee(StepSample(step.tokens, times[step]) for step in sizes)
    return Calibration(knee.tokens, knee.seconds, cost)


def _growing(chain: ChainRunner, pages: Bytes, seconds: float) -> Iterator[CalibrationStep]:
    """Steps to measure, until one round of them takes ``seconds``."""
    began = time.perf_counter()
    for step in KNEE_STEPS:
        if step is not KNEE_STEPS[0] and (not _fits(step, chain, pages) or time.perf_counter() - began > seconds):
            return
        yield step


def _fits(step: CalibrationStep, chain: ChainRunner, pages: Bytes) -> bool:
    last = step.start + step.count
    return last <= chain.config.context_length and step.slices * -(-last // chain.page_layout.tokens) <= len(pages)


def _measure(chain: ChainRunner, pages: Bytes, step: CalibrationStep) -> float:
    """Seconds of one step, its last rows through the head."""
    held = min(-(-(step.start + step.count) // chain.page_layout.tokens), len(pages) // step.slices)
    batch = StepBatch(
        token_ids=np.arange(step.tokens, dtype=np.int32) % np.int32(chain.config.vocab),
        positions=np.tile(np.arange(step.start, step.start + step.count, dtype=np.int32), step.slices),
        slice_starts=np.arange(step.slices + 1, dtype=np.int32) * np.int32(step.count),
        page_starts=np.arange(step.slices + 1, dtype=np.int32) * np.int32(held),
        page_ids=np.arange(step.slices * held, dtype=np.int32),
        output_rows=np.arange(1, step.slices + 1, dtype=np.int32) * np.int32(step.count) - np.int32(1),
    )
    began = time.perf_counter()
    chain.forward(batch, pages)
    chain.greedy(0, step.slices)
    return time.perf_counter() - began


def store_path(folder: Path, identity: Mapping[str, object]) -> Path:
    """Where the calibration for this ``identity`` (machine, model, threads, version …) is kept."""
    text = json.dumps(dict(identity), sort_keys=True, default=str)
    return folder / "calibration" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def load(path: Path) -> Calibration | None:
    """A stored calibration, ``None`` when there is none that can be used."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ValueError("unknown form")
        knee, seconds = data["knee"], data["knee_seconds"]
        if not (isinstance(knee, int) and ROW_TILE <= knee <= LARGEST):
            raise ValueError("knee out of bounds")
        if not (isinstance(seconds, float) and 0 < seconds < 3600):
            raise ValueError("seconds out of bounds")
        return Calibration(knee, seconds, Cost.from_dict(data["cost"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, HeadraceError) as error:
        logger.warning("stored calibration is not usable and is measured again: %s", error)
        return None


def save(path: Path, calibration: Calibration) -> None:
    """Store a calibration whole or not at all; a folder that can't be written only costs the next start its measuring."""
    data = {
        "format": _FORMAT,
        "knee": calibration.knee,
        "knee_seconds": calibration.knee_seconds,
        "cost": calibration.cost.to_dict(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            json.dump(data, file)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("the calibration can't be stored: %s", error)
