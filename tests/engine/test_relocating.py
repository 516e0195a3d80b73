"""Requests that change engines while they run: what they get is what they get alone, and no page is left behind."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_loop import REQUESTS, alone, prompt_of
from toy_chain import PAGE_TOKENS, Results, Shape, collect, submit, toy_engine

from headrace.engine.page_channel import Channel, PageListener, PageSender
from headrace.engine.relocating import Relocating
from headrace.engine.relocation_wire import (
    Adopt,
    Adopted,
    Departed,
    Expect,
    Expected,
    Leave,
    Leaving,
    Proceed,
    Release,
    RelocationNews,
    Return,
    Stays,
)
from headrace.engine.sampling_params import SamplingParams

KEY = b"k" * 32


def checksum(page: np.ndarray) -> int:
    return int(page.astype(np.uint64).sum())


class Side:
    """An engine with its sockets, and what it told."""

    def __init__(self, folder: Path, shape: Shape, key: bytes = KEY, identity: str = "toy") -> None:
        self.engine = toy_engine(shape)
        folder.mkdir(exist_ok=True)
        self.address = str(folder / f"{time.monotonic_ns()}")
        listener = PageListener(self.address, key, 4 * PAGE_TOKENS, identity)
        self.channel = Channel(listener, key, identity, checksum)
        self.relocating = Relocating(self.engine, self.channel)
        self.results: Results = {}

    def step(self) -> list[RelocationNews]:
        self.relocating.turn()
        news = self.relocating.take_news()
        outputs = self.engine.step()
        self.engine.check_integrity()
        collect(self.results, [] if outputs is None else outputs.outputs)
        return news

    def wait_for(self, kind: type[RelocationNews]) -> RelocationNews:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            for one in self.step():
                assert isinstance(one, kind), one
                return one
        raise AssertionError(f"no {kind}")

    def until(self, done: str) -> RelocationNews:
        """Step until news come, which may be that the request stays."""
        until = time.monotonic() + 5
        while time.monotonic() < until:
            news = self.step()
            if news:
                assert type(news[0]).__name__ in (done, "Stays", "Adopted"), news
                return news[0]
            time.sleep(0.002)  # a toy's steps take no time: requests would end before the first page is sent
        raise AssertionError(f"no {done}")


@contextmanager
def two_sides(folder: Path, shape: Shape | None = None) -> Iterator[tuple[Side, Side]]:
    sides = Side(folder, shape or Shape()), Side(folder, shape or Shape())
    try:
        yield sides
    finally:
        for side in sides:
            side.relocating.close()


def move(
    number: int, request: int, source: Side, target: Side, rng: random.Random | None = None, *, back: bool = False, ask: bool = True
) -> bool:
    """The whole protocol, as the owner of the record leads it. True when the target has the request. ``ask``: what it knows."""
    departed = offer(number, request, source, target, rng, ask=ask)
    if departed is None:
        return False
    if back:
        target.relocating.handle(Release(number))
        source.relocating.handle(Return(number))
        source.wait_for(Adopted)
        return False
    target.relocating.handle(Adopt(number, departed.state))
    adopted = target.wait_for(Adopted)
    assert isinstance(adopted, Adopted)
    source.relocating.handle(Return(number) if adopted.problem is not None else Release(number))
    source.step()
    return adopted.problem is None


def offer(
    number: int, request: int, source: Side, target: Side, rng: random.Random | None = None, *, ask: bool = True
) -> Departed | None:
    """The protocol until the request has left its source; ``None``: it stays there."""
    source.relocating.handle(Leave(number, request, 1000, target.address))
    leaving = source.until("Leaving")
    if isinstance(leaving, Stays):
        return None
    assert isinstance(leaving, Leaving)
    live = source.engine._requests.get(request)
    if live is None:
        source.relocating.handle(Release(number))
        return None
    target.relocating.handle(Expect(number, live.submit, leaving.pages, leaving.reserve, leaving.full if ask else []))
    expected = target.until("Expected")
    assert isinstance(expected, Expected)
    if expected.problem is not None:
        source.relocating.handle(Return(number))
        return None
    for _ in range(rng.randrange(4) if rng is not None else 0):
        if rng is not None and rng.random() < 0.5:
            target.step()
    source.relocating.handle(Proceed(number, expected.known))
    departed = source.until("Departed")
    if isinstance(departed, Stays):
        target.relocating.handle(Release(number))
        return None
    assert isinstance(departed, Departed)
    return departed


def merge(sides: tuple[Side, Side]) -> Results:
    """Everything that requests got on either side; where each part came from is checked by the lengths."""
    merged: Results = {}
    for side in sides:
        for key, result in side.results.items():
            known = merged.setdefault(key, type(result)([], []))
            known.tokens += result.tokens
            known.logprobs += result.logprobs
            known.prompt_logprobs = known.prompt_logprobs or result.prompt_logprobs
            known.finish, known.stop_token = known.finish or result.finish, known.stop_token or result.stop_token
    return merged


@settings(
    max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(REQUESTS, st.sampled_from([3, 7, 64]), st.integers(16, 40), st.integers(0, 2**32))
def test_moves_at_any_step_change_nothing(
    tmp_path: Path, requests: list[tuple[int, int, SamplingParams]], step_tokens: int, pages: int, seed_of_moves: int
) -> None:
    rng = random.Random(seed_of_moves)  # none of hypothesis's own: what is drawn depends on when pages arrive
    with two_sides(tmp_path, Shape(pages=pages, step_tokens=step_tokens)) as sides:
        shared: Results = {}
        for side in sides:
            side.results = shared  # one stream, whoever feeds it
        at: dict[int, int] = {}
        for i, (seed, length, params) in enumerate(requests):
            at[i] = rng.randrange(2)
            submit(sides[at[i]].engine, i, prompt_of(seed, length), params)
        number = 0
        while any(side.engine.has_work or side.engine.live for side in sides):
            live = [i for i in at if i in sides[at[i]].engine._requests]
            if live and number < 12 and rng.random() < 0.5:
                number, chosen = number + 1, rng.choice(live)
                where = sides[at[chosen]], sides[1 - at[chosen]]
                if move(number, chosen, *where, rng, back=rng.random() < 0.2, ask=rng.random() < 0.7):
                    at[chosen] = 1 - at[chosen]
            for side in sides:
                side.step()
        for side in sides:
            side.step()
            assert not side.relocating.busy
            assert side.engine.scheduler.pool.held == 0
            assert not side.engine.scheduler.handover.leases
    for i, (seed, length, params) in enumerate(requests):
        expected = alone(prompt_of(seed, length), params)
        for choice in range(params.n):
            got, want = shared[i, choice], expected[0, choice]
            assert (got.tokens, got.logprobs, got.finish, got.stop_token) == (
                want.tokens, want.logprobs, want.finish, want.stop_token,
            )  # fmt: skip


def running(side: Side, request: int, length: int = 60, seed: int = 1) -> None:
    submit(side.engine, request, prompt_of(seed, length), SamplingParams(max_tokens=40, temperature=0.8, ignore_eos=True))
    for _ in range(4):
        side.step()


def test_pages_travel_and_nothing_is_computed_again(tmp_path: Path) -> None:
    with two_sides(tmp_path) as (source, target):
        target.results = source.results
        running(source, 0)
        assert move(1, 0, source, target)
        source.engine._pages[:] = 99  # whoever still read them would find nonsense
        while target.engine.live:
            target.step()
        assert target.engine.scheduler.counters.prompt_tokens == 0
        expected = alone(prompt_of(1, 60), SamplingParams(max_tokens=40, temperature=0.8, ignore_eos=True))
        assert source.results[0, 0].tokens == expected[0, 0].tokens


def test_known_pages_of_both_sides_stay_known(tmp_path: Path) -> None:
    """The moved pages are in the index of the new home, so that the next turn of the talk starts behind them."""
    with two_sides(tmp_path) as (source, target):
        running(source, 0)
        assert move(1, 0, source, target)
        while target.engine.live:
            target.step()
        before = target.engine.scheduler.counters.prompt_tokens
        submit(target.engine, 5, prompt_of(1, 60), SamplingParams(max_tokens=2))
        while target.engine.live:
            target.step()
        assert target.engine.scheduler.counters.prompt_tokens - before <= PAGE_TOKENS


def test_no_room_is_said_and_the_request_stays(tmp_path: Path) -> None:
    with two_sides(tmp_path, Shape(pages=30)) as (source, target):
        running(source, 0)
        running(target, 1, seed=2)
        assert not move(1, 0, source, target)
        while source.engine.live:
            source.step()
        assert source.results[0, 0].finish == "length"
        assert target.engine.live == 1


def test_a_wrong_key_or_model_is_refused_and_the_request_stays(tmp_path: Path) -> None:
    for other in (Side(tmp_path, Shape(), key=b"x" * 32), Side(tmp_path, Shape(), identity="another")):
        source = Side(tmp_path, Shape())
        running(source, 0)
        source.relocating.handle(Leave(1, 0, 100, other.address))
        leaving = source.wait_for(Leaving)
        assert isinstance(leaving, Leaving)
        other.relocating.handle(Expect(1, source.engine._requests[0].submit, leaving.pages, leaving.reserve))
        other.wait_for(Expected)
        source.relocating.handle(Proceed(1))
        source.relocating.turn()
        sender = source.relocating._departures._outgoing[1].sender
        until = time.monotonic() + 5
        while sender is not None and sender.problem is None and time.monotonic() < until:
            time.sleep(0.002)  # without a step: the request must not end before
        source.wait_for(Stays)
        other.relocating.handle(Release(1))
        until = time.monotonic() + 5
        while not other.channel.listener.refusals.total and time.monotonic() < until:
            time.sleep(0.002)  # counted by the thread of the connection
        assert other.relocating.refused == {"stranger" if other.channel.key != KEY else "model": 1}
        while source.engine.live:
            source.step()
        other.step()
        assert other.engine.scheduler.pool.held == 0
        for side in (source, other):
            side.relocating.close()


@pytest.mark.parametrize("fault", ["garbage", "checksum", "number", "length", "half"])
def test_what_strangers_send_changes_nothing(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = Side(tmp_path, Shape()), Side(tmp_path, Shape())
    running(source, 0)
    target.relocating.handle(Expect(1, source.engine._requests[0].submit, 4, 0))
    target.wait_for(Expected)
    incoming = target.relocating._arrivals._incoming[1]
    pages = np.zeros((4, 4 * PAGE_TOKENS), np.uint8)
    if fault == "garbage":
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(target.address)
            stranger.sendall(b"\0" * 500)
            until = time.monotonic() + 5
            while not target.channel.listener.refusals.total and time.monotonic() < until:
                time.sleep(0.005)  # counted by the thread of the connection
        assert target.relocating.refused == {"stranger": 1}
    else:
        wrong = {"checksum": lambda page: 5, "number": checksum, "length": checksum, "half": checksum}[fault]
        if fault == "length":
            monkeypatch.setattr(PageSender, "_send_page", _send_short)
        sender = PageSender((target.address, 1), (KEY, "toy"), pages, wrong)
        sender.send([(9 if fault == "number" else 0, 0)])
        if fault == "half":
            monkeypatch.setattr(PageSender, "_send_page", _send_half)
            sender.send([(1, 1)])
        sender.finish()
        until = time.monotonic() + 5
        assert incoming.landing is not None
        while incoming.landing.problem is None and time.monotonic() < until:
            time.sleep(0.005)
        assert incoming.landing.problem is not None
        assert target.relocating.refused == ({} if fault == "number" else {"broken": 1})
    target.relocating.handle(Release(1))
    target.step()
    assert target.engine.scheduler.pool.held == 0
    for side in (source, target):
        side.relocating.close()


def _send_short(self: PageSender, number: int, page: int) -> None:
    self._socket.sendall(number.to_bytes(4, "little") + (7).to_bytes(4, "little") + bytes(15))


def _send_half(self: PageSender, number: int, page: int) -> None:
    self._socket.sendall(number.to_bytes(4, "little") + (4 * PAGE_TOKENS).to_bytes(4, "little") + bytes(15))
