"""Prefix reuse in the loop, on a model whose rows are folds over what the pages hold: a wrong page shows at once."""

from __future__ import annotations

import random
from typing import Any

import pytest
from toy_chain import PAGE_TOKENS, VOCAB, Results, Shape, ToyChain, run, toy_engine

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit


def prompt_of(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


def ask(engine: Engine, prompt: list[int], tenant: str = "", *, embed: bool = False, **fields: Any) -> Results:
    """Run one request to its end."""
    params = SamplingParams(**{"max_tokens": 6, "temperature": 0.0, "ignore_eos": True, **fields})
    engine.submit(Submit(1, prompt, params, embed=embed, tenant=tenant))
    return run(engine)


def fresh(prompt: list[int], **fields: Any) -> Results:
    """What an engine gives that has seen nothing."""
    return ask(toy_engine(), prompt, **fields)


def found(engine: Engine) -> int:
    return engine.gauges().prefix_found_tokens


@pytest.mark.parametrize("length", [1, PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1, 8 * PAGE_TOKENS, 8 * PAGE_TOKENS + 1])
def test_full_pages_are_found_and_the_last_token_is_computed(length: int) -> None:
    chain = ToyChain()
    engine = toy_engine(chain=chain)
    prompt = prompt_of(1, length)
    first = ask(engine, prompt)
    chain.steps.clear()
    assert ask(engine, prompt) == first == fresh(prompt)
    kept = (length - 1) // PAGE_TOKENS * PAGE_TOKENS
    assert found(engine) == kept
    assert chain.steps[0] == length - kept


def test_a_conversation_finds_its_own_answers() -> None:
    engine = toy_engine(Shape(pages=64))
    talk, told = prompt_of(2, 11), 0
    for turn in range(5):
        answer = ask(engine, talk, max_tokens=9)[1, 0].tokens
        assert answer == fresh(talk, max_tokens=9)[1, 0].tokens
        if turn:  # everything up to the last token but one has been computed in earlier turns
            assert found(engine) - told == (len(talk) - 7) // PAGE_TOKENS * PAGE_TOKENS
        told = found(engine)
        talk = [*talk, *answer, *prompt_of(turn, 6)]


def test_cached_tokens_are_told_with_the_first_output() -> None:
    engine = toy_engine()
    for expected in (0, 16):
        engine.submit(Submit(1, prompt_of(3, 18), SamplingParams(max_tokens=3, n=2, seed=4)))
        told = []
        while engine.live:
            outputs = engine.step()
            told += [output.cached_tokens for output in outputs.outputs] if outputs is not None else []
        assert told[0] == expected
        assert set(told[1:]) == {0}


def test_another_tenant_finds_nothing_and_gets_the_same() -> None:
    engine = toy_engine()
    prompt = prompt_of(4, 20)
    mine = ask(engine, prompt, "mine")
    for stranger in ("", "other", "mine2"):
        before = found(engine)
        assert ask(engine, prompt, stranger) == mine
        assert found(engine) == before
    ask(engine, prompt, "mine")
    assert found(engine) == 16


def test_shared_pages_are_found_by_all_and_off_by_none() -> None:
    prompt = prompt_of(4, 20)
    shared = toy_engine(Shape(prefix_reuse="shared"))
    ask(shared, prompt, "mine")
    ask(shared, prompt, "other")
    assert found(shared) == 16
    off = toy_engine(Shape(prefix_reuse="off"))
    ask(off, prompt)
    ask(off, prompt)
    gauges = off.gauges()
    assert (gauges.prefix_lookups, gauges.prefix_found_tokens, gauges.pages_cached) == (0, 0, 0)


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 2}, {"prompt_logprobs": 0, "max_tokens": 0}])
def test_prompt_logprobs_are_computed_in_full(fields: dict[str, Any]) -> None:
    engine = toy_engine()
    prompt = prompt_of(5, 23)
    ask(engine, prompt)
    assert ask(engine, prompt, **fields) == fresh(prompt, **fields)
    assert found(engine) == 0


def test_embeddings_compute_every_row_and_leave_their_pages() -> None:
    engine = toy_engine()
    prompt = prompt_of(6, 21)
    ask(engine, prompt)
    assert ask(engine, prompt, embed=True)[1, 0].embedding == fresh(prompt, embed=True)[1, 0].embedding
    assert found(engine) == 0
    ask(engine, prompt_of(7, 21), embed=True)
    ask(engine, prompt_of(7, 21))
    assert found(engine) == 20


def test_a_neighbour_finds_what_a_running_prompt_has_computed() -> None:
    engine = toy_engine(Shape(step_tokens=16))
    prompt = prompt_of(8, 60)
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    for request in (1, 2):
        engine.submit(Submit(request, prompt, params))
    results = run(engine)
    assert results[1, 0] == results[2, 0]
    assert found(engine) >= 40


def test_two_that_fill_the_same_pages_at_once_hold_them_once() -> None:
    engine = toy_engine(Shape(step_tokens=256))
    prompt = prompt_of(9, 33)
    params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    for request in range(4):
        engine.submit(Submit(request, prompt, params))
    engine.step()
    assert engine.scheduler.pool.held == 8 + 4
    results = run(engine)
    assert len({tuple(result.tokens) for result in results.values()}) == 1


def test_a_preempted_item_catches_up_from_its_own_pages() -> None:
    def starved(reuse: str) -> tuple[Results, int, int]:
        engine = toy_engine(Shape(pages=30, prefix_reuse=reuse))
        engine.scheduler._residency._expected_share = 0.0  # nobody is expected to go on, so that all are admitted
        for request in range(4):
            engine.submit(Submit(request, prompt_of(request, 8), SamplingParams(max_tokens=60, seed=request, ignore_eos=True)))
        results = run(engine)
        return results, engine.gauges().recomputed_tokens, engine.gauges().preemptions

    (with_reuse, fewer, preemptions), (without, more, _) = starved("on"), starved("off")
    assert with_reuse == without
    assert preemptions > 0
    assert fewer < more


def test_one_long_item_uses_every_cached_page() -> None:
    engine = toy_engine(Shape(pages=16))
    for seed in range(6):
        ask(engine, prompt_of(seed, 30))
    assert engine.scheduler.pool.cached > 8
    long = prompt_of(99, 16 * PAGE_TOKENS - 8)
    assert ask(engine, long, max_tokens=8) == fresh(long, max_tokens=8)
    assert engine.gauges().prefix_evictions > 0


def test_forks_and_cancelled_leaders_leave_the_index_whole() -> None:
    engine = toy_engine(Shape(step_tokens=8))
    prompt = prompt_of(10, 30)
    for request in range(3):
        engine.submit(Submit(request, prompt, SamplingParams(max_tokens=12, n=3, seed=request, ignore_eos=True)))
    for _ in range(2):
        engine.step()
    engine.cancel(0, 0)
    engine.check_integrity()
    results = run(engine)
    expected = toy_engine()
    expected.submit(Submit(2, prompt, SamplingParams(max_tokens=12, n=3, seed=2, ignore_eos=True)))
    alone = run(expected)
    assert {key: results[key].tokens for key in alone} == {key: result.tokens for key, result in alone.items()}
