"""Moves to an engine that has some of the pages: only the others are sent, and what is known there is right and stays there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_loop import alone, prompt_of
from test_relocating import Side, offer, running, two_sides
from toy_chain import PAGE_TOKENS, Shape

from headrace.engine.landing import PageLanding
from headrace.engine.relocation_wire import Adopt, Adopted, Departed, Expect, Expected, Release
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit

PARAMS = SamplingParams(max_tokens=40, temperature=0.8, ignore_eos=True)


def adopt(number: int, departed: Departed, source: Side, target: Side) -> None:
    target.relocating.handle(Adopt(number, departed.state))
    adopted = target.wait_for(Adopted)
    assert isinstance(adopted, Adopted)
    assert adopted.problem is None
    source.relocating.handle(Release(number))
    source.step()


def moved(number: int, source: Side, target: Side, *, ask: bool = True, request: int = 0) -> Departed:
    departed = offer(number, request, source, target, ask=ask)
    assert departed is not None
    adopt(number, departed, source, target)
    return departed


def finish(side: Side) -> None:
    while side.engine.live:
        side.step()


@pytest.mark.parametrize("ask", [True, False])
def test_who_comes_back_brings_only_what_is_new(tmp_path: Path, *, ask: bool) -> None:
    with two_sides(tmp_path) as (first, second):
        second.results = first.results
        running(first, 0)
        there = moved(1, first, second, ask=ask)
        full = there.state.choices[0].computed // PAGE_TOKENS
        assert (there.pages, there.spared) == (len(there.state.choices[0].pages), 0)
        for _ in range(2 * PAGE_TOKENS):
            second.step()
        back = moved(2, second, first, ask=ask)
        pages = len(back.state.choices[0].pages)
        assert (back.pages, back.spared) == ((pages - full, full) if ask else (pages, 0))
        assert back.spared_bytes == back.spared * first.engine._pages[0].nbytes
        finish(first)
        assert first.results[0, 0].tokens == alone(prompt_of(1, 60), PARAMS)[0, 0].tokens
        assert first.engine.scheduler.counters.prompt_tokens == 60, "nothing was computed again"


def test_a_second_turn_takes_what_the_first_one_left_behind(tmp_path: Path) -> None:
    with two_sides(tmp_path, Shape(pages=128)) as (first, second):
        second.results = first.results
        running(first, 0)
        there = moved(1, first, second)
        finish(second)
        talk = [*prompt_of(1, 60), *first.results[0, 0].tokens, *prompt_of(2, 10)]
        second.engine.submit(Submit(1, talk, PARAMS))
        second.step()
        back = moved(2, second, first, request=1)
        assert back.spared == there.state.choices[0].computed // PAGE_TOKENS, "what was full when the first turn left"
        finish(first)
        assert first.results[1, 0].tokens == alone(talk, PARAMS)[0, 0].tokens


def test_forks_that_share_pages_find_them_once(tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=30, temperature=0.8, n=3, ignore_eos=True)
    with two_sides(tmp_path) as sides:
        first, second = sides
        second.results = first.results
        first.engine.submit(Submit(0, prompt_of(1, 30), params))
        for number in range(1, 4):
            for _ in range(5):
                first.step()
            departed = moved(number, first, second)
            distinct = {page for choice in departed.state.choices for page in choice.pages}
            assert departed.pages + departed.spared == len(distinct)
            assert bool(departed.spared) == (number > 1)
            first, second = second, first
        finish(first)
        expected = alone(prompt_of(1, 30), params)
        assert [first.results[0, choice].tokens for choice in range(3)] == [expected[0, choice].tokens for choice in range(3)]


def test_what_others_computed_is_nobodys_but_theirs(tmp_path: Path) -> None:
    """The same tokens under another tenant's salt are sent."""
    with two_sides(tmp_path, Shape(pages=128)) as (source, target):
        prompt = prompt_of(1, 60)
        target.engine.submit(Submit(7, prompt, PARAMS, tenant="theirs"))
        finish(target)
        for request, tenant in enumerate(("ours", "theirs")):
            source.engine.submit(Submit(request, prompt, PARAMS, tenant=tenant))
            source.step()
            source.step()
            departed = moved(1 + request, source, target, request=request)
            assert bool(departed.spared) == (tenant == "theirs")
        find = target.engine.scheduler.handover.find
        assert len(find("theirs", prompt, 15)) == 15
        assert find(("theirs", ((1, 1.0),)), prompt, 15) == [], "other adapters, other pages"
        finish(target)


def test_known_pages_stay_until_they_are_taken_over_or_let_go(tmp_path: Path) -> None:
    """Between the answer and the request's coming, whoever needs room does not get it from them."""
    with two_sides(tmp_path, Shape(pages=48)) as (source, target):
        target.results = source.results
        running(target, 1)
        finish(target)
        running(source, 0)
        departed = offer(1, 0, source, target)
        assert departed is not None
        assert departed.spared >= 60 // PAGE_TOKENS
        for i in range(2, 6):
            target.engine.submit(Submit(i, prompt_of(i, 50), SamplingParams(max_tokens=4)))
        for _ in range(12):
            target.step()
        adopt(1, departed, source, target)
        finish(target)
        assert target.results[0, 0].tokens == alone(prompt_of(1, 60), PARAMS)[0, 0].tokens
        assert target.engine.scheduler.pool.held == 0


def test_pages_that_wait_for_whoever_needs_them_are_room_only_once(tmp_path: Path) -> None:
    """Cached pages are free, but holding them takes them from the free ones that others were promised."""
    with two_sides(tmp_path, Shape(pages=24)) as (source, target):
        running(target, 1, 56)
        submit = target.engine._requests[1].submit
        target.engine.cancel(1)
        handover = target.engine.scheduler.handover
        assert len(handover.find("", submit.prompt, 14)) == 14
        promised = handover.expect(0, target.engine.scheduler.pool.available - 14)
        assert promised is not None
        running(source, 0, 56)
        assert offer(1, 0, source, target) is None, "two pages more than are left"
        handover.drop(promised)
        assert offer(2, 0, source, target) is not None


def test_what_is_known_is_never_written() -> None:
    pool = np.zeros((8, 16), np.uint8)
    landing = PageLanding(pool, [5, 2, 7], 2)
    assert landing.has({0, 1})
    assert not landing.has({2})
    page = np.full(16, 9, np.uint8)
    assert landing.put(2, page)
    assert landing.has({0, 1, 2})
    assert not landing.put(1, page)
    assert landing.problem == "page 1 of 3 came, of which 2 were here"
    assert pool[2].max() == 0


def test_an_engine_that_knows_nothing_is_told_everything(tmp_path: Path) -> None:
    """Without reuse of prefixes there is nothing to be known by."""
    with two_sides(tmp_path, Shape(prefix_reuse="off")) as (source, target):
        running(source, 0)
        live = source.engine._requests[0]
        target.relocating.handle(Expect(1, live.submit, 20, 0, []))
        answer = target.wait_for(Expected)
        assert isinstance(answer, Expected)
        assert answer.known == {}
        target.relocating.handle(Release(1))
        assert moved(2, source, target).spared == 0
        finish(target)
