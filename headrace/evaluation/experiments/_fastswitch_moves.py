"""What moves cost by themselves: a request carried in pieces of several sizes; steps with a mover at work beside them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.engine.build import PIECE_BYTES, SWAP_POOLS, page_checksum
from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.evaluation.trials import Bench, PiecewiseTier
from headrace.memory.disk_tier import DiskTier, slot_bytes
from headrace.memory.lodging import Transfer
from headrace.memory.mover import Mover
from headrace.memory.moves import MoveOptions, Moves
from headrace.memory.page_pool import PagePool
from headrace.models.packages import cache_dir
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.swapping import Swapping

_PAGES = 44  # of the request that is carried
_STREAMS = 8
_PROMPT = 64
_BLOCK = 4  # steps with moves, then as many without
_AWAY = 4  # sequences that leave and come by turns
_LENGTH = 40  # pages of each


def page_seconds(bench: Bench, kinds: Sequence[tuple[int, int]], rounds: int) -> list[float]:
    """Seconds to write a page and read it back when a request leaves and returns, for each kind, by turns; the median round.

    A kind is (adjacent pages in one piece, pieces of a page).
    """
    arena = bench.built.arena
    times: list[list[float]] = [[] for _ in kinds]
    for number in range(rounds):
        for (run, pieces), found in zip(kinds, times, strict=True):
            tier = PiecewiseTier(arena, cache_dir(), 2 * _PAGES, pieces, page_checksum())
            tier.write(0, 0, 2 * _PAGES)  # its space is there from now on
            began = time.perf_counter()
            for carry in (tier.write, tier.read):
                for page in range(0, _PAGES, run):
                    carry(page, _PAGES * (number % 2) + page, min(run, _PAGES - page))
            found.append((time.perf_counter() - began) / _PAGES)
            tier.close()
    return [statistics.median(found) for found in times]


@dataclass(frozen=True, slots=True)
class Beside:
    """``longer``: percent by which the median step is longer with moves beside it. ``pages``: moved a step with them."""

    longer: float
    pages: float


class _Travellers:
    """Sequences that leave and come back all the time, on pages that the engine does not use, as much a step as it would allow."""

    def __init__(self, bench: Bench, swapping: Swapping) -> None:
        built = bench.built
        self._mover: Mover[Transfer] = Mover(DiskTier(built.arena, cache_dir(), swapping.moves.options.slots, page_checksum()))
        self._swapping = swapping
        self._moves = swapping.moves
        self.moved = 0
        self._resident: dict[int, list[int]] = {}
        for owner in range(_AWAY):
            pages = self._moves.pool.allocate(_LENGTH)
            assert pages is not None, "the pool holds them all"
            self._resident[owner] = pages

    def go_on(self, step_seconds: float) -> None:
        """Before a step: hand the mover what may move beside it."""
        self._collect()
        moves = self._moves
        if not moves.busy:
            for owner in range(_AWAY):
                if owner in self._resident:
                    moves.leave(owner, self._resident.pop(owner), _LENGTH * moves.pool.page_tokens)
                else:
                    fresh = moves.pool.allocate(moves.missing(owner))
                    assert fresh is not None, "their pages are free"
                    moves.come(owner, fresh)
        pages = self._swapping.pages_a_step(step_seconds)
        issued = moves.issue(pages) if pages else []
        self.moved += sum(transfer.count for transfer in issued)
        self._mover.start(issued)

    def rest(self) -> None:
        """Let what is under way end."""
        while self._moves.under_way:
            self._mover.wait(0.05)
            self._collect()

    def close(self) -> None:
        """Give the file back."""
        self.rest()
        self._mover.close()

    def _collect(self) -> None:
        rates = self._swapping.rates
        for one in self._mover.finished():
            self._moves.done(one.transfer, carried=one.error is None)
        rates.write, rates.read, rates.work = self._mover.write_rate, self._mover.read_rate, self._mover.work_rate
        self._resident.update(self._moves.arrived)
        self._moves.arrived.clear()


def steps_beside(bench: Bench, blocks: int, seed: int) -> Beside:
    """Streams that decode, in turns of some steps with moves beside them and as many without."""
    built = bench.built
    engine = bench.engine(SchedulingSettings(), built.arena.pages - _AWAY * _LENGTH)
    pool = PagePool(built.arena.pages, built.chain.page_layout.tokens)
    assert pool.allocate(built.arena.pages - _AWAY * _LENGTH) is not None, "the engine's pages"
    page = slot_bytes(built.arena.page_bytes)
    moves = Moves(pool, MoveOptions(SWAP_POOLS * _AWAY * _LENGTH, max(1, PIECE_BYTES // page), reuse=False))
    travellers = _Travellers(bench, Swapping(moves, engine.scheduler.cost, page))
    try:
        return _measure(bench, engine, travellers, blocks, seed)
    finally:
        travellers.close()
        engine.close()


def _measure(bench: Bench, engine: Engine, travellers: _Travellers, blocks: int, seed: int) -> Beside:
    rng = random.Random(seed)
    steps = (2 * _BLOCK + 1) * blocks
    for number in range(_STREAMS):
        params = SamplingParams(max_tokens=steps + 64, temperature=0.0, ignore_eos=True)
        engine.submit(Submit(number, bench.prompt(_PROMPT, rng), params))
    while engine.gauges().generated_tokens < 2 * _STREAMS:
        engine.step()
    beside, alone = [], [_timed(engine)]
    for _ in range(blocks):
        for _ in range(_BLOCK):
            began = time.perf_counter()
            travellers.go_on(statistics.median(alone))
            beside.append(time.perf_counter() - began + _timed(engine))
        travellers.rest()
        _timed(engine)
        alone += [_timed(engine) for _ in range(_BLOCK)]
    return Beside(100 * (statistics.median(beside) / statistics.median(alone) - 1), travellers.moved / (_BLOCK * blocks))


def _timed(engine: Engine) -> float:
    began = time.perf_counter()
    engine.step()
    return time.perf_counter() - began
