"""Drafts in the loop, on a model whose rows are folds over what the pages hold: whatever is drafted, the same tokens come out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from knowing import FreeRows, Knowing
from toy_chain import EOS, PAGE_TOKENS, VOCAB, Results, Shape, ToyChain, run, toy_engine

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import SpeculationGauges, Submit
from headrace.errors import HeadraceError
from headrace.speculation.lookup import OwnRepeats
from headrace.speculation.proposer import Ask, Proposal


def prompt_of(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


def mixed(count: int) -> list[Submit]:
    """Requests that use everything that sampling has."""
    wishes: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "top_logprobs": 3},
        {"temperature": 0.8, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
        {"temperature": 0.0, "repetition_penalty": 1.2, "top_logprobs": 0},
        {"temperature": 0.7, "n": 3, "top_p": 0.9},
        {"temperature": 0.0, "min_tokens": 7, "logit_bias": {EOS: 6.0}, "ignore_eos": False},
        {"temperature": 1.0, "min_tokens": 4, "stop_token_ids": tuple(range(10, 40)), "logit_bias": {5: 2.0}},
        {"temperature": 0.6, "n": 2, "best_of": 3},
        {"temperature": 0.0, "n": 2, "prompt_logprobs": 1},
    ]
    submits = []
    for index in range(count):
        params = SamplingParams(**{"max_tokens": 12 + index, "ignore_eos": True, "seed": index, **wishes[index % len(wishes)]})
        submits.append(Submit(index, prompt_of(index % 4, 5 + 3 * index), params))
    return submits


def answers(engine: Engine, submits: Sequence[Submit]) -> Results:
    for one in submits:
        engine.submit(one)
    return run(engine)


def said(results: Results) -> list[tuple[int, list[int]]]:
    """(request, tokens) of all choices."""
    return [(request, result.tokens) for (request, _), result in results.items()]


def gauges(engine: Engine) -> SpeculationGauges:
    found = engine.gauges().speculation
    assert found is not None
    return found


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "few pages": {"pages": 40},
    "small steps": {"step_tokens": 9},
    "few rows": {"prefix_reuse": "off", "logit_rows": 16},
}


@pytest.mark.parametrize("wrong", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_whatever_is_drafted_the_same_tokens_come_out(shape: dict[str, Any], wrong: float) -> None:
    submits = mixed(18)
    plain = answers(toy_engine(), submits)
    knowing = Knowing(wrong)
    knowing.learn([one.prompt for one in submits], said(plain))
    engine = toy_engine(Shape(**shape, proposers=[knowing]))
    assert answers(engine, submits) == plain
    counts = gauges(engine)
    assert counts.drafted > 0
    assert counts.accepted < 0.1 * counts.drafted if wrong == 1.0 else counts.accepted > 0
    assert engine.scheduler.pool.free == engine.scheduler.pool.total
    assert len(knowing.over) == len(set(knowing.over)) == sum(one.params.best_of or one.params.n for one in submits)


def test_right_drafts_save_steps() -> None:
    one = Submit(0, prompt_of(1, 9), SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True))
    slow = toy_engine()
    plain = answers(slow, [one])
    knowing = Knowing(0.0)
    knowing.learn([one.prompt], said(plain))
    engine = toy_engine(Shape(proposers=[knowing]))
    assert answers(engine, [one]) == plain
    assert slow.gauges().steps >= 40
    assert engine.gauges().steps <= 8
    assert engine.gauges().generated_tokens == 40
    assert knowing.told == 40


def test_only_accepted_tokens_are_known_afterwards() -> None:
    """A prompt that goes on as a rejected draft did finds nothing of it."""
    one = Submit(0, prompt_of(3, 2 * PAGE_TOKENS), SamplingParams(max_tokens=3 * PAGE_TOKENS, temperature=0.0, ignore_eos=True))
    plain = answers(toy_engine(), [one])
    knowing = Knowing(0.3, seed=4)
    knowing.learn([one.prompt], said(plain))
    engine = toy_engine(Shape(proposers=[knowing]))
    assert answers(engine, [one]) == plain
    assert gauges(engine).drafted > gauges(engine).accepted > 0
    longer = Submit(1, [*one.prompt, *plain[0, 0].tokens, 7], SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True))
    assert answers(engine, [longer]) == answers(toy_engine(), [longer])
    assert (
        engine.gauges().prefix_found_tokens == 5 * PAGE_TOKENS - PAGE_TOKENS
    )  # the last page lacks the token that was never computed


def test_a_request_may_want_none_or_few() -> None:
    submits = [
        Submit(0, prompt_of(1, 9), SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True), speculation=most)
        for most in (0, 2)
    ]
    plain = answers(toy_engine(), submits[:1])
    for one, most in zip(submits, (0, 2), strict=True):
        knowing = Knowing(0.0)
        knowing.learn([one.prompt], said(plain))
        engine = toy_engine(Shape(proposers=[knowing]))
        assert answers(engine, [one]) == plain
        counts = gauges(engine)
        assert counts.streams_4 == counts.streams_8 == 0
        assert (counts.drafted > 0) == (most > 0)


@pytest.mark.parametrize("fields", [{"speculation": 33}, {"speculation": -1}, {"prediction": [1] * 600}, {"prediction": [97]}])
def test_wishes_out_of_bounds_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(HeadraceError) as refused:
        toy_engine().submit(Submit(0, [4, 5], SamplingParams(), **fields))
    assert (refused.value.code, refused.value.param) == ("invalid_value", next(iter(fields)))


def test_a_poisoned_row_behind_a_right_draft_ends_the_choice_where_it_would_have() -> None:
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    one = Submit(0, prompt_of(1, 9), params)
    clean = answers(toy_engine(), [one])
    poison = clean[0, 0].tokens[7]
    plain = answers(toy_engine(chain=ToyChain(poison=poison)), [one])
    assert plain[0, 0].finish == "error"
    knowing = Knowing(0.0)
    knowing.learn([one.prompt], said(clean))
    assert answers(toy_engine(Shape(proposers=[knowing]), ToyChain(poison=poison)), [one]) == plain


def test_cancelling_in_the_middle_frees_everything() -> None:
    one = Submit(0, prompt_of(1, 9), SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True))
    knowing = Knowing(0.1)
    knowing.learn([one.prompt], said(answers(toy_engine(), [one])))
    engine = toy_engine(Shape(proposers=[knowing]))
    engine.submit(one)
    for _ in range(4):
        engine.step()
    engine.cancel(0)
    engine.check_integrity()
    assert engine.scheduler.pool.free == engine.scheduler.pool.total
    assert knowing.over == [1]


def test_what_a_request_says_again_is_found_in_itself() -> None:
    """Greedy output of the toy model at length repeats itself or not; biased to two tokens it surely does."""
    bias = {5: 100.0, 6: 100.0}
    one = Submit(0, prompt_of(2, 6), SamplingParams(max_tokens=80, temperature=0.0, ignore_eos=True, logit_bias=bias))
    plain = answers(toy_engine(), [one])
    engine = toy_engine(Shape(proposers=[OwnRepeats()]))
    assert answers(engine, [one]) == plain
    counts = gauges(engine)
    assert counts.accepted > 10
    assert engine.gauges().steps < 60


class Priced(Knowing):
    """The same for seconds of the model's time."""

    def __init__(self, wrong: float, seconds: float) -> None:
        super().__init__(wrong)
        self._price = seconds

    def price(self, asks: Sequence[Ask]) -> float:
        return self._price * len(asks)


@pytest.mark.parametrize(
    ("wrong", "seconds", "least", "most"), [(0.0, 0.05, 0.9, 1.0), (1.0, 0.3, 0.01, 0.3), (0.0, 40.0, 0.0, 0.02)]
)
def test_who_costs_time_is_asked_where_that_pays_and_else_now_and_then(
    wrong: float, seconds: float, least: float, most: float
) -> None:
    """Steps take a second here: little is well spent on right guesses, on wrong ones it is not, and 40 s never are."""
    one = Submit(0, prompt_of(1, 9), SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True))
    plain = answers(toy_engine(Shape(pages=128)), [one])
    proposer = Priced(wrong, seconds)
    proposer.learn([one.prompt], said(plain))
    engine = toy_engine(Shape(pages=128, proposers=[proposer]))
    assert answers(engine, [one]) == plain
    assert least <= proposer.asked / engine.gauges().steps <= most


def test_for_who_never_gets_a_right_guess_ever_fewer_tokens_are_looked_up() -> None:
    """Looking up costs little, but text that does not repeat would pay it for every token."""

    class Counting(OwnRepeats):
        asked = 0

        def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
            self.asked += 1
            return [None]

    proposer = Counting()
    engine = toy_engine(Shape(proposers=[proposer]))
    engine.scheduler.cost = FreeRows()
    engine.submit(Submit(1, prompt_of(1, 5), SamplingParams(max_tokens=200, ignore_eos=True)))
    said_tokens = len(run(engine)[1, 0].tokens)
    assert said_tokens / 8 <= proposer.asked <= said_tokens / 3, said_tokens
