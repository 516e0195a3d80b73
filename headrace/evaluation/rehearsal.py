"""Step times of engines as they serve: with their neighbours, their sockets and the process that reads their tokens.

What a calibration measures is the shortest time of each step, on an engine that does nothing else. Real steps take longer, and
between two of them messages come and go. Who wants to foretell what requests will get must know the time of the whole turn.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.watch_wire import StepReport
from headrace.engine.wire import Submit
from headrace.evaluation.engine_requests import prompt_of
from headrace.instances.group import InstanceGroup
from headrace.planning.cluster import Outcome, Served
from headrace.planning.instance import Progress
from headrace.scheduling.cost import StepTime
from headrace.scheduling.simulation import Arrival

_WATCHED = 60.0
_IDLE = 5e-3
"""Between two steps that lie farther apart nobody had work."""


async def drive(group: InstanceGroup, arrivals: Sequence[Arrival], seed: int) -> Outcome:
    """Send requests when they come; what became of each, in the words of the simulation."""
    began = time.perf_counter()
    served = [Served(one.time, one.output, 0, Progress(one.output)) for one in arrivals]
    both = enumerate(zip(served, arrivals, strict=True))
    await asyncio.gather(*(_one(group, one, prompt_of(arrival.prompt, seed + number), began) for number, (one, arrival) in both))
    return Outcome(served)


async def _one(group: InstanceGroup, served: Served, prompt: list[int], began: float) -> None:
    progress = served.progress
    await asyncio.sleep(max(0.0, began + served.sent - time.perf_counter()))
    params = SamplingParams(max_tokens=served.output, temperature=0.0, ignore_eos=True)
    async for outputs in group.submit(Submit(group.new_request_id(), prompt, params, speculation=0)):
        now = time.perf_counter() - began
        if progress.count:
            progress.longest_gap = max(progress.longest_gap, now - progress.last)
        else:
            progress.first = now
        progress.last = now
        progress.count += sum(len(output.tokens) for output in outputs)


async def rehearse(group: InstanceGroup, arrivals: Sequence[Arrival], seed: int) -> list[list[StepTime]]:
    """Serve these requests; the turns of each instance meanwhile."""
    members = [slot.member for slot in group.slots.all]
    group.watch(_WATCHED)
    for member in members:
        member.take_reports()  # those of whoever watched before
    await drive(group, arrivals, seed)
    return [turns(member.take_reports()) for member in members]


def turns(reports: Sequence[StepReport]) -> list[StepTime]:
    """Steps with what usually lies between one and the next: planning, and messages that come and go."""
    apart = [later.began - earlier.began - earlier.seconds for earlier, later in pairwise(reports)]
    between = statistics.median([seconds for seconds in apart if seconds < _IDLE] or [0.0])
    return [StepTime(sum(one.rows.values()), one.pairs, one.heads, one.seconds + between) for one in reports]
