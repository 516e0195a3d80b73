"""Step times of a layout of instances, measured with all of them computing at once: they share memory, caches and clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from headrace import __version__
from headrace.engine.build import make_chain, pool_pages
from headrace.engine.calibration import Calibration, calibrate, load, save, store_path
from headrace.engine.machine import cpu_name
from headrace.engine.pool_size import context_length, kv_format
from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.memory.arena import Arena
from headrace.models.catalog import find_model, open_model
from headrace.models.packages import cache_dir
from headrace.scheduling.cost import Cost

_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class LayoutCost:
    """What one of ``instances`` with ``threads`` each does: its calibration, and the ``pages`` of ``page_bytes`` that it has."""

    instances: int
    threads: int
    calibration: Calibration
    pages: int
    page_bytes: int


def thread_layouts(cores: int) -> list[tuple[int, int]]:
    """(instances, threads of each) that use all cores, fewest instances first."""
    return [(count, cores // count) for count in range(1, cores + 1) if cores % count == 0]


def measure_layout(model: str, instances: int, threads: int, cores: Sequence[int]) -> LayoutCost:
    """Calibrate ``instances`` processes at the same time, each on its own ``cores``; what was measured before is remembered.

    Raises what opening the model raises, and ``internal_error`` when a process fails.
    """
    settings = EngineSettings(model=model, threads=threads)
    path = store_path(
        cache_dir(), {"layout": instances, "threads": threads, "cpu": cpu_name(), "version": __version__, "model": model}
    )
    stored = load(path)
    if stored is not None:
        return LayoutCost(instances, threads, stored, *_pages(settings, instances))
    found = measure_now(model, instances, threads, cores)
    save(path, found.calibration)
    return found


def measure_now(model: str, instances: int, threads: int, cores: Sequence[int]) -> LayoutCost:
    """As :func:`measure_layout`, whatever was measured before, and remembering nothing."""
    calibration = _mean(_measure_together(model, instances, threads, cores))
    return LayoutCost(instances, threads, calibration, *_pages(EngineSettings(model=model, threads=threads), instances))


def _pages(settings: EngineSettings, instances: int) -> tuple[int, int]:
    """Pages of one of so many instances, and bytes of each: what there is for one model is divided."""
    opened = open_model(find_model(settings.model), None)
    chain = make_chain(opened, "cpu", 1, kv_format(settings.kv, "cpu"))
    pages = max(1, pool_pages(chain, context_length(opened.config, settings), settings) // instances)
    return pages, chain.page_layout.page_bytes


def _measure_together(model: str, instances: int, threads: int, cores: Sequence[int]) -> list[Calibration]:
    with ExitStack() as stack:
        children = []
        for number in range(instances):
            own = ",".join(map(str, cores[number * threads : (number + 1) * threads]))
            command = [sys.executable, "-m", "headrace.evaluation.layout_costs", model, str(threads), own]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            children.append(stack.enter_context(child))
            stack.callback(child.kill)
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                raise HeadraceError("internal_error", f"a process of {threads} threads could not load {model}")
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return [_read(child) for child in children]


def _read(child: subprocess.Popen[str]) -> Calibration:
    try:
        text, _ = child.communicate(timeout=_SECONDS)
        data = json.loads(text)
        return Calibration(int(data["knee"]), float(data["seconds"]), Cost.from_dict(data["cost"]))
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        raise HeadraceError("internal_error", f"a process that measures step times failed: {error}") from None


def _mean(found: Sequence[Calibration]) -> Calibration:
    """One calibration for all: the mean of each term, the median knee."""
    count = len(found)
    dicts = [one.cost.to_dict() for one in found]
    terms = {name: sum(data["coefficients"][name] for data in dicts) / count for name in dicts[0]["coefficients"]}
    knee = sorted(found, key=lambda one: one.knee)[count // 2]
    return Calibration(knee.knee, knee.knee_seconds, Cost.from_dict(dicts[0] | {"coefficients": terms}))


def _child(model: str, threads: int, cores: str) -> None:
    """Load, wait for the word, measure, print."""
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    settings = EngineSettings(model=model, threads=threads)
    opened = open_model(find_model(model), None)
    chain = make_chain(opened, "cpu", threads, kv_format(settings.kv, "cpu"))
    layout = chain.page_layout
    with Arena(pool_pages(chain, context_length(opened.config, settings), settings), layout.page_bytes, layout.strips) as arena:
        print("ready", flush=True)
        sys.stdin.readline()
        found = calibrate(chain, arena.bytes)
    print(json.dumps({"knee": found.knee, "seconds": found.knee_seconds, "cost": found.cost.to_dict()}), flush=True)


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), sys.argv[3])
