"""A draft model in the loop: the same tokens whoever drafts, guesses that are what the draft would say itself, bounded memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from knowing import FreeRows
from test_speculating import answers, gauges, mixed, prompt_of
from tiny_model import write_tiny_model
from toy_chain import VOCAB, Results, Shape, ToyChain, toy_engine

from headrace.engine.build import build_engine
from headrace.engine.drafting_model import check_vocabulary
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.errors import HeadraceError
from headrace.kernels.interface import Float32
from headrace.kernels.sampler import Sampler
from headrace.models.catalog import find_model, open_model
from headrace.scheduling.cost import Cost
from headrace.speculation.draft_model import DEPTH, DraftModel


class Quick(Cost):
    """Runs of the draft cost nothing."""

    def predict(self, tokens: int, pairs: int, rows: int, adapters: int = 0) -> float:
        return 1e-9

    def observe(self, tokens: int, pairs: int, rows: int, seconds: float, adapters: int = 0) -> None:
        """Nothing is learnt."""


class Hazy(ToyChain):
    """Says mostly what the toy says: every fifth row or so is another one."""

    def logits(self, first: int, count: int) -> Float32:
        rows = super().logits(first, count)
        for row in rows:
            if int(abs(row[0]) * 1e4) % 5 == 0:
                row[:] = row[::-1].copy()
        return rows


def draft(chain: ToyChain | None = None, pages: int = 64) -> DraftModel:
    chain = chain or ToyChain()
    memory = np.full((pages, chain.page_layout.page_bytes), 77, np.uint8)
    return DraftModel(chain, memory, Sampler(VOCAB), Quick(), FreeRows())


SHAPES: dict[str, dict[str, Any]] = {"plain": {}, "few pages": {"pages": 40}, "small steps": {"step_tokens": 9}}


@pytest.fixture(scope="module")
def plain() -> Results:
    return answers(toy_engine(), mixed(18))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("pages", [300, 24, 3])
@pytest.mark.parametrize("chain", [ToyChain, Hazy])
def test_whoever_drafts_the_same_tokens_come_out(shape: dict[str, Any], pages: int, chain: type[ToyChain], plain: Results) -> None:
    """Also where the draft has room for few streams only, or for none."""
    proposer = draft(chain(), pages)
    engine = toy_engine(Shape(**shape, proposers=[proposer]))
    assert answers(engine, mixed(18)) == plain
    assert proposer.held_pages == 0
    assert (gauges(engine).accepted > 0) == (pages > 3)
    assert engine.scheduler.pool.free == engine.scheduler.pool.total


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_draft_that_is_the_model_is_always_right_also_where_tokens_are_drawn(temperature: float) -> None:
    """It draws with the stream's own random numbers; its keys and values are those of the accepted tokens, or it would err."""
    params = SamplingParams(max_tokens=40, temperature=temperature, top_p=0.95, seed=5, ignore_eos=True)
    submits = [Submit(index, prompt_of(index, 300 if index == 2 else 9 + index), params) for index in range(3)]
    plain = answers(toy_engine(Shape(pages=256)), submits)
    engine = toy_engine(Shape(pages=256, proposers=[draft(pages=256)]))
    assert answers(engine, submits) == plain
    counts = gauges(engine)
    assert counts.accepted == counts.drafted > 60
    assert counts.streams_8 > 0


def test_guesses_are_what_the_draft_says_alone() -> None:
    """Against a plain loop over the whole text, whatever was guessed wrongly before."""
    seen: list[tuple[list[int], list[int]]] = []

    class Watched(DraftModel):
        def propose(self, asks: Any) -> Any:
            found = super().propose(asks)
            seen.extend(
                (list(ask.stream.tokens), list(one.tokens)) for ask, one in zip(asks, found, strict=True) if one is not None
            )
            return found

    chain = Hazy()
    memory = np.zeros((64, chain.page_layout.page_bytes), np.uint8)
    engine = toy_engine(Shape(proposers=[Watched(chain, memory, Sampler(VOCAB), Quick(), FreeRows())]))
    answers(
        engine, [Submit(i, prompt_of(i, 6 + i), SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)) for i in range(3)]
    )
    assert len(seen) > 8
    for text, guesses in seen:
        assert 1 <= len(guesses) <= DEPTH
        for place, guess in enumerate(guesses):
            one = Submit(0, text + guesses[:place], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
            assert answers(toy_engine(chain=Hazy()), [one])[0, 0].tokens == [guess]


def test_a_slow_draft_is_not_asked_for_long() -> None:
    """One that takes as long as the model brings nothing, and gets a hundredth of the time to show otherwise."""

    class Slow(Quick):
        def predict(self, tokens: int, pairs: int, rows: int, adapters: int = 0) -> float:
            return 1.0

    chain = ToyChain()
    memory = np.zeros((64, chain.page_layout.page_bytes), np.uint8)
    proposer = DraftModel(chain, memory, Sampler(VOCAB), Slow(), FreeRows())
    engine = toy_engine(Shape(proposers=[proposer]))
    one = Submit(0, prompt_of(1, 9), SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    assert answers(engine, [one]) == answers(toy_engine(), [one])
    assert gauges(engine).drafted == 0
    assert not chain.steps


@pytest.mark.model
def test_the_model_itself_in_fewer_bits_drafts_for_it() -> None:
    settings = EngineSettings(model="smollm2", weights="bf16", speculation="draft:smollm2", pool_mib=64, threads=2)
    built = build_engine(settings)
    try:
        built.engine.scheduler.cost = FreeRows()
        found = {}
        for most in (0, None):
            params = SamplingParams(max_tokens=24, temperature=0.7, seed=3, ignore_eos=True)
            built.engine.submit(Submit(1 if most is None else 0, prompt_of(2, 12), params, speculation=most))
            tokens: list[int] = []
            while built.engine.live:
                outputs = built.engine.step()
                tokens += [token for output in outputs.outputs for token in output.tokens] if outputs is not None else []
            found[most] = tokens
        assert found[None] == found[0]
        assert gauges(built.engine).accepted > 8
    finally:
        built.close()


@pytest.mark.model
@pytest.mark.gemma
@pytest.mark.parametrize(
    ("model", "draft", "problem"),
    [
        ("smollm2", "draft:gemma3", "another vocabulary"),
        ("smollm2", "draft:no-such-model", "no-such-model"),
        ("smollm2", "draft:", "without a model"),
        ("smollm2", "draft:smollm2,draft:smollm2", "twice"),
        ("smollm2", "off,draft:smollm2", "off alone"),
    ],
)
def test_drafts_that_can_not_be_are_refused_at_start(model: str, draft: str, problem: str) -> None:
    with pytest.raises(HeadraceError, match=problem) as refused:
        build_engine(EngineSettings(model=model, speculation=draft, pool_mib=64, threads=1)).close()
    assert refused.value.code in ("invalid_setting", "model_not_found")


def test_a_draft_larger_than_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = write_tiny_model(tmp_path / "small")
    monkeypatch.setattr("tiny_model.LAYERS", 4)
    large = write_tiny_model(tmp_path / "large")
    for model, drafts, problem in ((small, large, "must not be larger"), (large, small, "")):
        settings = EngineSettings(model=str(model), speculation=f"auto,draft:{drafts}", pool_mib=16, threads=1)
        if problem:
            with pytest.raises(HeadraceError, match=problem) as refused:
                build_engine(settings)
            assert (refused.value.code, refused.value.param) == ("invalid_setting", "speculation")
        else:
            build_engine(settings).close()


def test_a_token_that_means_something_else_is_noticed(tmp_path: Path) -> None:
    model = open_model(find_model(str(write_tiny_model(tmp_path))))
    check_vocabulary(model, model)
    one, other = (dataclasses.replace(model, tokenizer_source={"tokenizer.ggml.tokens": ["a", last]}) for last in "bc")
    longer = dataclasses.replace(model, tokenizer_source={"tokenizer.ggml.tokens": ["a", "b", "padding"]})
    check_vocabulary(one, longer)
    with pytest.raises(HeadraceError, match="another vocabulary"):
        check_vocabulary(one, other)
