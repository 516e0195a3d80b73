"""The soak itself: rounds of load with a rest after each, in which everything must be back where it was."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.errors import HeadraceError
from headrace.evaluation.soak.asks import Ask, essence, fixed_asks
from headrace.evaluation.soak.disturbers import Disturbers
from headrace.evaluation.soak.plain_http import Address
from headrace.evaluation.soak.server import ADAPTERS, SoakServer
from headrace.evaluation.soak.watch import Held, Watch
from headrace.settings.declaration import option, validate

_ROUND_SECONDS = 45.0
_SAMPLES = 240
_CROWD_EVERY = 3  # rounds
_REST_SECONDS = 240.0
_MOST_TOLD = 20


@dataclass(frozen=True, slots=True)
class SoakSettings:
    """What a soak depends on."""

    minutes: float = option(10.0, minimum=0.05, maximum=10_080.0, unit="min", help="Length of the load.")
    model: str = option("smollm2", help="Model to serve: a name, a GGUF file or a folder.")
    people: int = option(16, minimum=1, maximum=1000, help="Requests of the fixed set under way at a time; half as many disturb.")
    pool_mib: int = option(
        320, minimum=16, maximum=65_536, unit="MiB", help="Memory for pages: little makes requests wait and give way."
    )
    seed: int = option(0, minimum=0, maximum=2**63 - 1, help="Seed of who does what when.")

    def __post_init__(self) -> None:
        validate(self)


@dataclass(slots=True)
class SoakResult:
    """What came out. ``asked`` and ``answered`` count requests of the fixed set by kind; ``wrong`` and ``lost`` tell each fault."""

    seconds: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    rests: int = 0
    at_rest: list[dict[str, Held]] = field(default_factory=list)
    exit_code: int | None = None
    log: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    watch: Watch | None = None
    engines: set[int] = field(default_factory=set)


Tell = Callable[[str, int, int], None]


class Soak:
    """One run; see :func:`soak`."""

    def __init__(self, settings: SoakSettings, server: SoakServer, tell: Tell) -> None:
        self._settings = settings
        self._server = server
        self._tell = tell
        self._address: Address = server.address
        self._asks: list[Ask] = fixed_asks(server.name, ADAPTERS)
        self._expected: dict[int, str] = {}
        self._watch = Watch(server.process.pid)
        self._disturbers = Disturbers(self._address, server, self._asks, self._expected)
        self._random = random.Random(settings.seed)
        self.result = SoakResult(watch=self._watch)

    async def run(self) -> None:
        """Ask everything once undisturbed, then load in rounds, then once more undisturbed."""
        await self._ready()
        for number, ask in enumerate(self._asks):
            reply = await self._address.call(ask.path, ask.body)
            told = essence(ask, reply)
            if told is None:
                raise HeadraceError("internal_error", f"{ask.kind} got {reply.status} with nobody else there: {reply.body[:300]!r}")
            self._expected[number] = told
        for act in (*self._disturbers.heavy, self._disturbers.crowd):
            await self._act(act, random.Random(0))
        await self._rest()
        length, began = self._settings.minutes * 60, time.monotonic()
        sampling = asyncio.create_task(self._sample(max(0.1, length / _SAMPLES)))
        try:
            while (left := length - (time.monotonic() - began)) > 0:
                await self._round(min(left, _ROUND_SECONDS))
                await self._rest()
        finally:
            sampling.cancel()
        for number in range(len(self._asks)):
            await self._ask(number)
        await self._rest()
        self.result.seconds = time.monotonic() - began
        self.result.acts, self.result.faults = self._disturbers.acts, self._disturbers.faults + self.result.faults
        self.result.metrics = await self._metrics()

    async def _ready(self) -> None:
        async with asyncio.timeout(180):
            while (await self._address.call("/readyz")).status != 200:
                await asyncio.sleep(0.1)

    async def _sample(self, every: float) -> None:
        began = time.monotonic()
        while True:
            await asyncio.to_thread(self._watch.look)
            self.result.engines |= set(self._watch.engines())
            done = sum(self.result.answered.values())
            bad = len(self.result.wrong) + len(self.result.lost) + len(self._disturbers.faults)
            line = f"{done:,} answers compared, {sum(self._disturbers.acts.values()):,} disturbances, {bad} faults"
            self._tell(line, int(time.monotonic() - began), int(self._settings.minutes * 60))
            await asyncio.sleep(every)

    async def _round(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        picks = [random.Random(self._random.getrandbits(64)) for _ in range(2 * self._settings.people + 10)]
        over = asyncio.Event()
        people = [self._asker(picks.pop(), over) for _ in range(self._settings.people)]
        people += [self._disturber(picks.pop(), over) for _ in range((self._settings.people + 1) // 2)]
        slow = [self._repeat(act, picks.pop(), until) for act in self._disturbers.heavy]
        if self.result.rests % _CROWD_EVERY == 0:
            slow.append(self._act(self._disturbers.crowd, self._random))
        asking = asyncio.gather(*people)
        try:
            await asyncio.gather(*slow)  # what takes long ends among the others, not after them
        finally:
            over.set()
            await asking

    async def _asker(self, pick: random.Random, over: asyncio.Event) -> None:
        while not over.is_set():
            await self._ask(pick.randrange(len(self._asks)))

    async def _disturber(self, pick: random.Random, over: asyncio.Event) -> None:
        while not over.is_set():
            await self._act(pick.choice(self._disturbers.light), pick)
            await asyncio.sleep(pick.random() / 4)

    async def _repeat(self, act: Callable[..., object], pick: random.Random, until: float) -> None:
        while time.monotonic() < until:
            await self._act(act, pick)
            await asyncio.sleep(pick.random())

    async def _act(self, act: Callable[..., object], pick: random.Random) -> None:
        try:
            await act(pick)  # type: ignore[misc]
        except (OSError, TimeoutError, RuntimeError, ValueError, KeyError) as error:
            self._disturbers.faults.append(f"{getattr(act, '__name__', act)}: {error!r}")
            await asyncio.sleep(0.5)

    async def _ask(self, number: int) -> None:
        ask = self._asks[number]
        self.result.asked[ask.kind] += 1
        try:
            reply = await self._address.call(ask.path, ask.body)
        except (OSError, TimeoutError) as error:
            self.result.lost.append(f"{ask.kind}: {error!r}")
            await asyncio.sleep(0.5)
            return
        told = essence(ask, reply)
        if told is None:
            self.result.lost.append(f"{ask.kind}: {reply.status}, {'whole' if reply.whole else 'cut off'}: {reply.body[-200:]!r}")
        elif told != self._expected[number]:
            self.result.wrong.append(f"{ask.kind}: {told[:300]} instead of {self._expected[number][:300]}")
        self.result.answered[ask.kind] += told is not None

    async def _rest(self) -> None:
        """Wait until nothing is under way: the engine then looks through all its books, and ends if one is wrong."""
        until = time.monotonic() + _REST_SECONDS
        while time.monotonic() < until:
            found = await self._metrics()
            held = found["headrace_pages_total"] - found["headrace_pages_free"] - found["headrace_adapter_pages"]
            if found["headrace_requests_live"] == 0 and found["headrace_training_jobs"] == 0 and held == 0:
                self.result.rests += 1
                self.result.at_rest.append(await asyncio.to_thread(self._watch.look))
                return
            await asyncio.sleep(0.1)
        self.result.left_over.append(
            f"at rest: {found['headrace_requests_live']:.0f} requests, {found['headrace_training_jobs']:.0f} jobs, {held:.0f} pages"
        )

    async def _metrics(self) -> dict[str, float]:
        text = (await self._address.call("/metrics")).body.decode()
        return {name: float(value) for name, value in re.findall(r"^(headrace_\w+) (\S+)$", text, re.MULTILINE)}


def soak(settings: SoakSettings, tell: Tell) -> SoakResult:
    """Start a server, load it for the time asked, end it; what was found. ``tell`` hears of the progress.

    Raises ``internal_error`` when the server does not start or refuses the fixed set while it is alone.
    """
    with SoakServer(settings.model, settings.pool_mib) as server:
        run = Soak(settings, server, tell)
        asyncio.run(run.run())
        run.result.exit_code = server.stop()
        run.result.log = [line for line in server.lines if re.search(r"Traceback|\bERROR\b|\berror\b|went wrong", line)][
            :_MOST_TOLD
        ]
    return run.result
