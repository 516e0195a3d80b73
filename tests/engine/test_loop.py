"""The loop on a toy model: what requests get, however their steps were cut."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from toy_chain import EOS, PAGE_TOKENS, VOCAB, Clock, Results, Shape, ToyChain, collect, run, submit, toy_engine

from headrace.engine.sampling_params import GrammarSpec, SamplingParams
from headrace.engine.wire import Submit
from headrace.errors import HeadraceError


def prompt_of(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


def alone(prompt: list[int], params: SamplingParams, *, embed: bool = False) -> Results:
    engine = toy_engine(Shape(step_tokens=2048, pages=256))
    engine.submit(Submit(0, prompt, params, embed=embed))
    return run(engine)


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 12),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    top_k=st.sampled_from([0, 5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    logit_bias=st.sampled_from([{}, {5: 3.0, 9: -100.0}]),
    seed=st.integers(0, 1000),
    n=st.integers(1, 4),
    top_logprobs=st.sampled_from([None, 0, 3]),
    prompt_logprobs=st.sampled_from([None, 2]),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (3, 4, 5, 6, 7, 8)]),
)
REQUESTS = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 30), PARAMS), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking takes minutes
@given(REQUESTS, st.sampled_from([3, 7, 16, 64]), st.integers(12, 40), st.integers(4, 64), st.randoms(use_true_random=False))
def test_neighbours_chunks_forks_and_starvation_change_nothing(
    requests: list[tuple[int, int, SamplingParams]], step_tokens: int, pages: int, logit_rows: int, rng: random.Random
) -> None:
    engine = toy_engine(Shape(pages=pages, step_tokens=step_tokens, logit_rows=logit_rows))
    order = list(range(len(requests)))
    rng.shuffle(order)
    results: Results = {}
    for i in order:  # arrivals between steps
        submit(engine, i, prompt_of(*requests[i][:2]), requests[i][2])
        for _ in range(rng.randrange(3)):
            outputs = engine.step()
            engine.check_integrity()
            collect(results, [] if outputs is None else outputs.outputs)
    for key, rest in run(engine).items():
        before = results.setdefault(key, type(rest)([], []))
        before.tokens += rest.tokens
        before.logprobs += rest.logprobs
        before.prompt_logprobs = rest.prompt_logprobs if before.prompt_logprobs is None else before.prompt_logprobs
        before.finish, before.stop_token = rest.finish, rest.stop_token
    scored: dict[int, object] = {}
    for (i, choice), result in results.items():
        expected = alone(prompt_of(*requests[i][:2]), requests[i][2])[0, choice]
        assert (result.tokens, result.logprobs, result.finish, result.stop_token) == (
            expected.tokens, expected.logprobs, expected.finish, expected.stop_token,
        )  # fmt: skip
        scored[i] = scored.get(i) or result.prompt_logprobs
    for i, (seed, length, params) in enumerate(requests):
        assert {choice for j, choice in results if j == i} == set(range(params.n))
        together = alone(prompt_of(seed, length), params)
        assert (scored[i] or []) == (next((r.prompt_logprobs for r in together.values() if r.prompt_logprobs), None) or [])
    assert engine.scheduler.pool.free == pages


@pytest.mark.parametrize("length", [1, 3, PAGE_TOKENS, PAGE_TOKENS + 1, 13])
def test_greedy_continues_by_the_models_own_rule(length: int) -> None:
    prompt = prompt_of(1, length)
    got = alone(prompt, SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True))[0, 0].tokens
    chain = ToyChain()
    tokens = list(prompt)
    for _ in range(6):
        memory = np.zeros((16, PAGE_TOKENS), np.int32)
        memory.reshape(-1)[: len(tokens)] = tokens
        state = chain._fold(memory, np.arange(16, dtype=np.int32), len(tokens) - 1)
        tokens.append(int((chain._head @ state).argmax()))
    assert got == tokens[length:]


def test_choices_share_the_prompts_pages_and_compute_it_once() -> None:
    engine = toy_engine()
    submit(engine, 0, prompt_of(2, 17), SamplingParams(n=4, max_tokens=8, ignore_eos=True, seed=3))
    engine.step()
    assert engine.gauges().prompt_tokens == 17
    assert engine.scheduler.pool.held == 5
    results = run(engine)
    assert engine.gauges().prompt_tokens == 17
    assert len({tuple(result.tokens) for result in results.values()}) == 4


def test_best_of_sends_the_best_by_mean_logprob() -> None:
    every = alone(prompt_of(3, 6), SamplingParams(n=5, max_tokens=6, seed=9, top_logprobs=0))
    ranking = sorted(every.values(), key=lambda r: -sum(p.logprob for p in r.logprobs) / max(1, len(r.logprobs)))
    best = alone(prompt_of(3, 6), SamplingParams(n=2, best_of=5, max_tokens=6, seed=9, top_logprobs=0, ignore_eos=True))
    every = alone(prompt_of(3, 6), SamplingParams(n=5, max_tokens=6, seed=9, top_logprobs=0, ignore_eos=True))
    ranking = sorted(every.values(), key=lambda r: -sum(p.logprob for p in r.logprobs) / len(r.logprobs))
    assert [best[0, 0], best[0, 1]] == ranking[:2]
    assert len(best) == 2


def test_best_of_without_logprobs_ranks_alike_and_shows_none() -> None:
    params = SamplingParams(n=1, best_of=4, max_tokens=6, seed=9, ignore_eos=True)
    hidden = alone(prompt_of(3, 6), params)[0, 0]
    shown = alone(prompt_of(3, 6), SamplingParams(n=1, best_of=4, max_tokens=6, seed=9, ignore_eos=True, top_logprobs=0))[0, 0]
    assert (hidden.tokens, hidden.logprobs) == (shown.tokens, [])


def test_stop_tokens_end_a_choice_and_are_not_among_its_tokens() -> None:
    free = alone(prompt_of(4, 5), SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True))[0, 0].tokens
    stop = free[3]
    cut = free.index(stop)
    got = alone(prompt_of(4, 5), SamplingParams(max_tokens=10, temperature=0.0, stop_token_ids=(stop,), ignore_eos=True))[0, 0]
    assert (got.tokens, got.finish, got.stop_token) == (free[:cut], "stop", stop)


def test_min_tokens_forbids_the_stops_until_then() -> None:
    params = SamplingParams(temperature=0.0, stop_token_ids=tuple(range(2, VOCAB - 1)), max_tokens=8)
    assert alone(prompt_of(5, 5), params)[0, 0].tokens == []
    got = alone(prompt_of(5, 5), msgspec.structs.replace(params, min_tokens=4))[0, 0]
    assert len(got.tokens) == 4
    assert set(got.tokens) <= {0, VOCAB - 1}
    assert got.finish == "stop"


def test_eos_ends_unless_ignored() -> None:
    bias = {EOS: 100.0}
    ended = alone(prompt_of(6, 4), SamplingParams(max_tokens=5, temperature=0.0, logit_bias=bias))[0, 0]
    assert (ended.tokens, ended.finish, ended.stop_token) == ([], "stop", EOS)
    ignored = alone(prompt_of(6, 4), SamplingParams(max_tokens=5, temperature=0.0, logit_bias=bias, ignore_eos=True))[0, 0]
    assert (ignored.tokens, ignored.finish) == ([EOS] * 5, "length")


def test_prompt_logprobs_without_output() -> None:
    got = alone(prompt_of(7, 9), SamplingParams(max_tokens=0, prompt_logprobs=2))[0, 0]
    assert (got.tokens, got.finish) == ([], "length")
    assert got.prompt_logprobs is not None
    assert [entry.token for entry in got.prompt_logprobs] == prompt_of(7, 9)[1:]
    assert all(len(entry.top) == 2 and entry.top[0][1] >= entry.logprob for entry in got.prompt_logprobs)


@pytest.mark.parametrize("first", [0, 1, 2, 5, 8])
def test_prompt_logprobs_from_a_token_on_are_those_of_all(first: int) -> None:
    whole = alone(prompt_of(7, 9), SamplingParams(max_tokens=0, prompt_logprobs=2))[0, 0].prompt_logprobs
    part = alone(prompt_of(7, 9), SamplingParams(max_tokens=0, prompt_logprobs=2, prompt_logprobs_from=first))[0, 0].prompt_logprobs
    assert whole is not None
    assert part == whole[max(0, first - 1) :]


def test_tokens_that_are_not_scored_are_found_and_not_read_again() -> None:
    engine = toy_engine(Shape(step_tokens=16))
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=12)
    found = []
    for number in (1, 2):
        submit(engine, number, prompt_of(7, 15), params)
        found.append(run(engine)[number, 0])
    assert found[0].prompt_logprobs == found[1].prompt_logprobs
    assert [one.cached_tokens for one in found] == [0, 8]


def test_a_prompt_has_the_tokens_that_are_scored() -> None:
    engine = toy_engine()
    with pytest.raises(HeadraceError, match="beyond a prompt of 4 tokens") as refused:
        submit(engine, 1, prompt_of(7, 4), SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=4))
    assert refused.value.param == "prompt_logprobs_from"


@pytest.mark.parametrize("step_tokens", [5, 64])
def test_the_last_row_is_the_embedding_where_the_model_says_so(step_tokens: int) -> None:
    engine = toy_engine(Shape(step_tokens=step_tokens))
    engine.limits = replace(engine.limits, pooling="last")
    prompt = prompt_of(8, 23)
    engine.submit(Submit(1, prompt, SamplingParams(), embed=True))
    vector = run(engine)[1, 0].embedding
    pages = np.array(prompt, np.int32).reshape(1, -1)
    row = ToyChain()._fold(np.pad(pages, ((0, 0), (0, 1))).reshape(-1, PAGE_TOKENS), np.arange(6, dtype=np.int32), 22)
    assert vector == (row.astype(np.float64) / np.sqrt(np.sum(row.astype(np.float64) ** 2))).tolist()


def test_embeddings_do_not_depend_on_chunks_and_have_length_one() -> None:
    vectors = []
    for step_tokens in (5, 64):
        engine = toy_engine(Shape(step_tokens=step_tokens))
        engine.submit(Submit(1, prompt_of(8, 23), SamplingParams(), embed=True))
        submit(engine, 2, prompt_of(9, 9), SamplingParams(max_tokens=5))
        vectors.append(run(engine)[1, 0].embedding)
    assert vectors[0] == vectors[1]
    assert vectors[0] is not None
    assert np.isclose(np.linalg.norm(vectors[0]), 1.0)


@pytest.mark.parametrize("when", range(7))
@pytest.mark.parametrize("n", [1, 3])
def test_cancel_gives_pages_back_at_once_and_harms_nobody(when: int, n: int) -> None:
    engine = toy_engine(Shape(pages=24, step_tokens=8))
    keep = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    submit(engine, 1, prompt_of(10, 11), keep)
    submit(engine, 2, prompt_of(11, 21), SamplingParams(n=n, max_tokens=30, ignore_eos=True))
    results: Results = {}
    for _ in range(when):
        outputs = engine.step()
        collect(results, [] if outputs is None else outputs.outputs)
    engine.cancel(2)
    engine.check_integrity()
    held = {page for item in engine.scheduler._roster.items.values() for page in item.pages}
    assert engine.scheduler.pool.held == len(held)
    rest = run(engine)
    assert [rest[2, choice].finish for choice in range(n)] == ["cancelled"] * n
    kept = results[1, 0].tokens if (1, 0) in results else []
    assert kept + (rest[1, 0].tokens if (1, 0) in rest else []) == alone(prompt_of(10, 11), keep)[0, 0].tokens
    assert engine.scheduler.pool.free == 24
    engine.cancel(2)
    engine.cancel(99)


@pytest.mark.parametrize("when", range(6))
def test_cancelling_the_leader_leaves_its_forks_as_they_were(when: int) -> None:
    params = SamplingParams(n=3, max_tokens=5, seed=4, ignore_eos=True, prompt_logprobs=0)
    engine = toy_engine(Shape(step_tokens=5))
    submit(engine, 0, prompt_of(12, 14), params)
    results: Results = {}
    for _ in range(when):
        outputs = engine.step()
        collect(results, [] if outputs is None else outputs.outputs)
    engine.cancel(0, 0)
    for key, rest in run(engine).items():
        if key in results:
            results[key].tokens += rest.tokens
            results[key].finish = rest.finish
        else:
            results[key] = rest
    expected = alone(prompt_of(12, 14), params)
    assert [results[0, i].tokens for i in (1, 2)] == [expected[0, i].tokens for i in (1, 2)]
    assert results[0, 0].finish == "cancelled"


def test_deadlines_end_running_and_waiting_requests() -> None:
    clock = Clock()
    engine = toy_engine(Shape(pages=8), clock=clock)
    engine.submit(Submit(1, prompt_of(13, 20), SamplingParams(max_tokens=12, ignore_eos=True), deadline=5.0))
    engine.submit(Submit(2, prompt_of(14, 20), SamplingParams(max_tokens=12, ignore_eos=True), deadline=2.0))
    results: Results = {}
    for _ in range(4):
        outputs = engine.step()
        assert outputs is not None
        collect(results, outputs.outputs)
    assert (2, 0) not in results
    clock.now += 2.5
    outputs = engine.step()
    assert outputs is not None
    collect(results, outputs.outputs)
    assert (results[2, 0].finish, results[2, 0].tokens) == ("deadline", [])
    clock.now += 10
    collect(results, [] if (outputs := engine.step()) is None else outputs.outputs)
    assert results[1, 0].finish == "deadline"
    assert len(results[1, 0].tokens) > 0
    assert engine.scheduler.pool.free == 8


def test_queue_seconds_come_once_with_the_first_output() -> None:
    clock = Clock()
    engine = toy_engine(clock=clock)
    submit(engine, 1, prompt_of(15, 6), SamplingParams(max_tokens=3, ignore_eos=True))
    clock.now += 1.5
    waited = []
    while engine.live:
        outputs = engine.step()
        waited += [output.queue_seconds for output in outputs.outputs] if outputs else []
    assert waited == [1.5, None, None]


def test_a_poisoned_row_ends_its_own_request_only() -> None:
    poison = 60
    clean = [token for token in prompt_of(16, 12) if token != poison]
    params = SamplingParams(max_tokens=6, temperature=0.7, seed=2, ignore_eos=True, logit_bias={poison: -100.0})
    expected = alone(clean, params)[0, 0].tokens
    engine = toy_engine(chain=ToyChain(poison=poison))
    submit(engine, 1, clean, params)
    submit(engine, 2, [5, 6, poison], SamplingParams(max_tokens=5, temperature=0.0))
    submit(engine, 3, [5, 6, poison], SamplingParams(max_tokens=5, temperature=1.0))
    submit(engine, 4, [5, poison, 6], SamplingParams(max_tokens=0, prompt_logprobs=1))
    engine.submit(Submit(5, [5, poison, 6], SamplingParams(), embed=True))
    results = run(engine)
    assert [results[i, 0].finish for i in (2, 3, 4, 5)] == ["error"] * 4
    assert results[1, 0].tokens == expected


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        (Submit(1, [], SamplingParams()), "invalid_value", "prompt"),
        (Submit(1, [VOCAB], SamplingParams()), "invalid_value", "prompt"),
        (Submit(1, [-1], SamplingParams()), "invalid_value", "prompt"),
        (Submit(1, [2**70], SamplingParams()), "invalid_value", "prompt"),
        (Submit(1, [2] * 513, SamplingParams(max_tokens=0)), "context_length_exceeded", "prompt"),
        (Submit(1, [2] * 500, SamplingParams(max_tokens=13)), "context_length_exceeded", "max_tokens"),
        (Submit(1, [2], SamplingParams(logit_bias={VOCAB: 1.0})), "invalid_value", "logit_bias"),
        (Submit(1, [2], SamplingParams(stop_token_ids=(-3,))), "invalid_value", "stop_token_ids"),
        (Submit(1, [2], SamplingParams(n=4, best_of=2)), "invalid_value", "best_of"),
        (Submit(1, [2], SamplingParams(max_tokens=2, min_tokens=3)), "invalid_value", "min_tokens"),
        (Submit(1, [2], SamplingParams(), deadline=0.0), "invalid_value", "deadline"),
        (Submit(1, [2], SamplingParams(), deadline=float("nan")), "invalid_value", "deadline"),
        (Submit(1, [2], SamplingParams(grammar=GrammarSpec("json_object", ""))), "unsupported_parameter", "grammar"),
        (Submit(7, [2], SamplingParams()), "invalid_value", "request_id"),
    ],
)
def test_what_cannot_run_is_refused_by_name(message: Submit, code: str, param: str) -> None:
    engine = toy_engine()
    submit(engine, 7, [2, 3], SamplingParams(max_tokens=2))
    with pytest.raises(HeadraceError) as refused:
        engine.submit(message)
    assert (refused.value.code, refused.value.param) == (code, param)
    engine.check_integrity()
    assert set(run(engine)) == {(7, 0)}


def test_a_full_queue_refuses_all_choices_or_none() -> None:
    engine = toy_engine(Shape(max_waiting=3))
    submit(engine, 1, [2, 3], SamplingParams(n=2, max_tokens=2))
    with pytest.raises(HeadraceError, match="waiting"):
        submit(engine, 2, [2, 3], SamplingParams(n=3, max_tokens=2))
    engine.check_integrity()
    assert engine.scheduler.live == 2
    run(engine)


def test_the_base_seed_changes_samples_and_nothing_else() -> None:
    params = SamplingParams(max_tokens=12, seed=1, ignore_eos=True)
    tokens = []
    for seed in (0, 0, 1):
        engine = toy_engine(Shape(seed=seed))
        submit(engine, 0, [5, 6, 7], params)
        tokens.append(run(engine)[0, 0].tokens)
    assert tokens[0] == tokens[1] != tokens[2]


def test_counters_add_up() -> None:
    engine = toy_engine()
    for i in range(3):
        submit(engine, i, prompt_of(i, 10), SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0))
    run(engine)
    gauges = engine.gauges()
    assert (gauges.prompt_tokens, gauges.generated_tokens, gauges.running, gauges.waiting) == (30, 12, 0, 0)
    assert gauges.step_seconds >= gauges.overhead_seconds > 0
    assert engine.scheduler.cost.observed == gauges.steps
