"""One engine in real time in this process: requests that come by the clock or from clients, and the time of each token."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from types import TracebackType

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import AdapterUse, StepOutputs, Submit
from headrace.evaluation.trials import Bench
from headrace.evaluation.workload import Lengths

_LONGEST_SLEEP = 0.05


@dataclass(frozen=True, slots=True)
class Planned:
    """A request to come: its prompt, the tokens that it generates (greedy, end tokens ignored), and when (``at`` seconds).

    ``share``: who pays for it, and whose pages it may find. ``adapters``: what it runs with.
    """

    prompt: list[int]
    output: int
    at: float = 0.0
    share: str = ""
    adapters: tuple[AdapterUse, ...] = ()


@dataclass(slots=True)
class Timing:
    """What one request went through, in seconds of the run's clock.

    ``sent`` is when the request came, even when the engine was in a step then: waiting for the step counts. ``client``: who
    sent it, ``None`` for one that came by the clock. ``refused``: it will get nothing, since a promise could not be kept.
    """

    planned: Planned
    sent: float
    client: int | None
    times: list[float] = field(default_factory=list)
    refused: bool = False

    @property
    def finished(self) -> bool:
        """Whether all its tokens are there."""
        return len(self.times) == self.planned.output

    @property
    def first(self) -> float:
        """Seconds to the first token; there must be one."""
        return self.times[0] - self.sent

    def gaps(self) -> list[float]:
        """Seconds between its tokens."""
        return [after - before for before, after in pairwise(self.times)]


@dataclass(frozen=True, slots=True)
class Window:
    """What an engine did in a stretch of time. Tokens are rows of prompts computed and tokens generated."""

    seconds: float
    steps: int
    prompt_tokens: int
    generated: int
    step_seconds: float
    overhead_seconds: float

    @property
    def rate(self) -> float:
        """Prompt and generated tokens a second."""
        return (self.prompt_tokens + self.generated) / self.seconds


Client = Iterator[Planned]
"""Requests of one client: it sends the next when the last one is answered (``at`` is ignored)."""


class LiveRun:
    """Drives one engine; a context manager that drops what still runs at the end.

    The clock starts with the first step. ``clients`` each have one request under way; :meth:`schedule` adds requests that come
    by the clock.
    """

    def __init__(self, engine: Engine, clients: Sequence[Client] = ()) -> None:
        self.engine = engine
        self.timings: list[Timing] = []
        self._arrivals: list[tuple[float, Planned]] = []
        self._clients = clients
        self._live: dict[int, Timing] = {}
        self._began: float | None = None

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for request_id in self._live:
            self.engine.cancel(request_id)
        self.engine.close()

    @property
    def now(self) -> float:
        """Seconds since the run began, 0 before."""
        return 0.0 if self._began is None else time.perf_counter() - self._began

    @property
    def done(self) -> bool:
        """True when everything planned has come and ended."""
        return self._began is not None and not self._live and not self._arrivals

    def schedule(self, arrivals: Sequence[Planned]) -> None:
        """These come ``at`` seconds from now."""
        self._arrivals += [(self.now + planned.at, planned) for planned in arrivals]
        self._arrivals.sort(key=itemgetter(0), reverse=True)

    def advance(self) -> None:
        """One step, or a short sleep until the next request comes."""
        if self._began is None:
            self._began = time.perf_counter()
            for number in range(len(self._clients)):
                self._send_next(number, 0.0)
        while self._arrivals and self._arrivals[-1][0] <= self.now:
            at, planned = self._arrivals.pop()
            self._send(planned, at, None)
        if self._live:
            outputs = self.engine.step()
            for refused in self.engine.take_refused():
                self._live.pop(refused.request_id).refused = True
            if outputs is not None:
                self._take(outputs)
            elif self.engine.reading_adapters:
                self.engine.wait_compiled(_LONGEST_SLEEP)
        elif self._arrivals:
            time.sleep(min(_LONGEST_SLEEP, max(0.0, self._arrivals[-1][0] - self.now)))

    def warm_up(self, clients: int | None = None) -> None:
        """Advance until each client, or each of the first ``clients``, has had its first token."""
        wanted = len(self._clients) if clients is None else clients
        while len({timing.client for timing in self.timings if timing.times and timing.client in range(wanted)}) < wanted:
            self.advance()

    def run(self, seconds: float | None = None, until: Callable[[], bool] | None = None) -> Window:
        """Advance for ``seconds``, until ``until`` says so, or until all is done; what was done meanwhile."""
        before, began = self.engine.gauges(), time.perf_counter()
        while not self.done and (seconds is None or time.perf_counter() - began < seconds) and not (until is not None and until()):
            self.advance()
        after = self.engine.gauges()
        return Window(
            time.perf_counter() - began, after.steps - before.steps, after.prompt_tokens - before.prompt_tokens,
            after.generated_tokens - before.generated_tokens, after.step_seconds - before.step_seconds,
            after.overhead_seconds - before.overhead_seconds,
        )  # fmt: skip

    def _send_next(self, client: int, now: float) -> None:
        planned = next(self._clients[client], None)
        if planned is not None:
            self._send(planned, now, client)

    def _send(self, planned: Planned, sent: float, client: int | None) -> None:
        request_id = len(self.timings) + 1
        params = SamplingParams(max_tokens=planned.output, temperature=0.0, ignore_eos=True)
        own = list(planned.adapters)
        self.engine.submit(Submit(request_id, planned.prompt, params, tenant=planned.share, share=planned.share, adapters=own))
        timing = Timing(planned, sent, client)
        self.timings.append(timing)
        self._live[request_id] = timing

    def _take(self, outputs: StepOutputs) -> None:
        now = self.now
        for output in outputs.outputs:
            timing = self._live[output.request_id]
            timing.times += [now] * len(output.tokens)
            if output.finish is None:
                continue
            if not timing.finished:
                raise RuntimeError(f"a request ended with '{output.finish}' after {len(timing.times)} tokens")
            del self._live[output.request_id]
            if timing.client is not None:
                self._send_next(timing.client, now)


def client(bench: Bench, prompt: Lengths, output: Lengths, rng: random.Random) -> Client:
    """A client that never stops, with its own stream of lengths and texts."""
    own = random.Random(rng.getrandbits(64))
    while True:
        yield Planned(bench.prompt(prompt.draw(own), own), max(2, output.draw(own)))
