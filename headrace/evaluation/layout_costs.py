"""Step times of a layout of instances, measured with all of them computing at once: they share memory, caches and clock.

First what steps of every size take at least, and then what they take in engines that serve (:mod:`headrace.evaluation.rehearsal`),
once for each role: who computes prompts beside a neighbour that makes tokens has other step times than the neighbour.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain as joined

from headrace import __version__
from headrace.engine.build import make_chain, pool_pages
from headrace.engine.calibration import Calibration, calibrate, load, save, store_path
from headrace.engine.machine import cpu_name
from headrace.engine.pool_size import context_length, kv_format
from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.evaluation.rehearsal import rehearse
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.memory.arena import Arena
from headrace.models.catalog import find_model, open_model
from headrace.models.packages import cache_dir
from headrace.placement.roles import Role
from headrace.planning.workload import Lengths, Traffic
from headrace.scheduling.cost import Cost, StepTime
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.simulation import Arrival

_SECONDS = 300.0
REHEARSED_SECONDS = 2.0
_BUSY = 0.7  # of a rate at which they would be served one after the other
_REHEARSAL = Traffic(Lengths("lognormal", 120, 0.6), Lengths("lognormal", 16, 0.5), longest=1000)


@dataclass(frozen=True, slots=True)
class LayoutCost:
    """What one of ``instances`` with ``threads`` each does: its calibration, and the ``pages`` of ``page_bytes`` that it has.

    ``loaded``: the time of its steps as it serves, by role, with what lies between two of them; empty: not known.
    """

    instances: int
    threads: int
    calibration: Calibration
    pages: int
    page_bytes: int
    loaded: Mapping[Role, Cost] = field(default_factory=dict)

    def cost(self, role: Role = "all") -> Cost:
        """The time of steps of an instance with this role."""
        return self.loaded.get(role, self.calibration.cost)


def thread_layouts(cores: int) -> list[tuple[int, int]]:
    """(instances, threads of each) that use all cores, fewest instances first."""
    return [(count, cores // count) for count in range(1, cores + 1) if cores % count == 0]


def measure_layout(model: str, instances: int, threads: int, cores: Sequence[int]) -> LayoutCost:
    """Calibrate ``instances`` processes at the same time, each on its own ``cores``, and have them rehearse in every role; what
    was measured before is remembered.

    Raises what opening the model raises, and ``internal_error`` when a process fails.
    """
    settings = EngineSettings(model=model, threads=threads)
    identity = {"layout": instances, "threads": threads, "cpu": cpu_name(), "version": __version__, "model": model}
    paths = {role: store_path(cache_dir(), identity | {"loaded": role}) for role in _roles(instances)}
    stored = {role: one for role, path in paths.items() if (one := load(path)) is not None}
    if len(stored) == len(paths):
        loaded = {role: one.cost for role, one in stored.items()}
        return LayoutCost(instances, threads, stored["all"], *_pages(settings, instances), loaded)
    found = asyncio.run(_rehearsed(model, measure_idle(model, instances, threads, cores)))
    for role, path in paths.items():
        save(path, replace(found.calibration, cost=found.loaded[role]))
    return found


def measure_idle(model: str, instances: int, threads: int, cores: Sequence[int]) -> LayoutCost:
    """What steps take at least, whatever was measured before, and remembering nothing."""
    calibration = _mean(_measure_together(model, instances, threads, cores))
    return LayoutCost(instances, threads, calibration, *_pages(EngineSettings(model=model, threads=threads), instances))


def _roles(instances: int) -> tuple[Role, ...]:
    return ("all",) if instances == 1 else ("all", "prefill", "decode")


async def _rehearsed(model: str, idle: LayoutCost) -> LayoutCost:
    """The same with what steps take in engines that serve, for each role."""
    count = idle.instances
    group = InstanceGroup(GroupOptions(count, round_seconds=0.0))
    settings = EngineSettings(model=model, threads=count * idle.threads)
    loaded: dict[Role, Cost] = {}
    try:
        await group.start(settings, SchedulingSettings(prefix_reuse="off"))
        every: Role = "all"
        kinds: list[tuple[Role, ...]] = [(every,) * count]
        if count > 1:
            kinds.append(tuple("prefill" if number < count // 2 else "decode" for number in range(count)))
        for seed, kind in enumerate(kinds):
            group.handoff.change(dict(enumerate(kind)))
            for role, steps in _by_role(await rehearse(group, rehearsal(idle, seed), 10_000 * seed), kind).items():
                loaded[role] = idle.calibration.cost.refitted(steps)
    finally:
        await group.stop()
    return replace(idle, loaded=loaded)


def rehearsal(idle: LayoutCost, seed: int, seconds: float = REHEARSED_SECONDS) -> list[Arrival]:
    """Requests that keep the instances of a layout busy for so long."""
    calibration, (prompt, output) = idle.calibration, (_REHEARSAL.prompt.a, _REHEARSAL.output.a)
    alone = prompt / calibration.knee * calibration.knee_seconds + output * calibration.cost.predict(1, int(prompt), 1)
    rate = _BUSY * idle.instances / alone
    return list(_REHEARSAL.arrivals(rate, max(4, round(seconds * rate)), seed))


def _by_role(steps: Sequence[Sequence[StepTime]], roles: Sequence[Role]) -> dict[Role, list[StepTime]]:
    each = list(zip(roles, steps, strict=True))
    return {role: list(joined.from_iterable(own for other, own in each if other == role)) for role in roles}


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
