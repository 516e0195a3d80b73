"""Requests with adapters on the bundled model: the same bits in any company, whatever becomes of pages and files meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from headrace import LLM, SamplingParams
from headrace.engine.adapters import Adapters
from headrace.engine.adapting import Adapting
from headrace.engine.build import make_chain, make_moving, make_scheduler
from headrace.engine.client import EngineClient
from headrace.engine.loop import Engine, EngineParts
from headrace.engine.request import Limits
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import (
    AdapterAnswer,
    AdapterCall,
    AdapterCard,
    AdapterList,
    AdapterUse,
    ListAdapters,
    PinAdapter,
    Refused,
    RegisterAdapter,
    RemoveAdapter,
    Submit,
    TokenOutput,
)
from headrace.errors import HeadraceError
from headrace.kernels.native_chain import NativeChain
from headrace.kernels.sampler import Sampler
from headrace.memory.arena import Arena
from headrace.memory.disk_tier import slot_bytes
from headrace.memory.moves import MoveOptions
from headrace.models.adapter import Adapter, LowRank, module_sides, round_bf16
from headrace.models.adapter_file import ADAPTER_WEIGHTS, write_adapter
from headrace.models.catalog import OpenModel, find_model, open_model
from headrace.models.config import ModelConfig
from headrace.models.recoding import recode
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.swapping import SwapOptions

pytestmark = pytest.mark.model

PROMPT = [504, 3575, 282, 4649, 314, 260, 1234, 99, 500, 42, 7, 8, 900, 901, 902, 903, 77, 78, 79]
COUNT = 8
PARAMS = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True, top_logprobs=2)
Answers = dict[int, tuple[list[int], list[float], str | None]]


def adapter(config: ModelConfig, seed: int) -> Adapter:
    generator = np.random.default_rng(seed)
    rank = 2 + seed % 4
    layers = []
    for sides in module_sides(config):
        made = {}
        for name in (("q", "down"), ("o", "up"))[seed % 2]:
            a, b = (generator.standard_normal(shape, np.float32) for shape in ((rank, sides[name][0]), (sides[name][1], rank)))
            made[name] = LowRank(round_bf16(a), round_bf16(b), 0.01)
        layers.append(made)
    return Adapter(tuple(layers), "random")


@dataclass(frozen=True)
class Bench:
    model: OpenModel
    chain: NativeChain
    arena: Arena
    folder: Path

    def engine(self, pages: int = 128, step_tokens: int = 256, *, reuse: bool = False, swap: bool = False) -> Engine:
        """An engine with ``COUNT`` adapters, whose generations are 1 …"""
        settings = SchedulingSettings(step_tokens=step_tokens, prefix_reuse="on" if reuse else "off")
        tier = SwapOptions(MoveOptions(200), slot_bytes(self.arena.page_bytes), "swap") if swap else None
        scheduler = make_scheduler(settings, pages, self.chain, None, tier)
        bytes_ = self.arena.bytes[:pages]
        config = self.model.config
        adapting = Adapting(scheduler, Adapters(config, scheduler.adapters.store, bytes_))
        for index in range(COUNT):
            adapting.register(f"a{index}", self.folder / str(index))
        limits = Limits(config.vocab, config.context_length, config.eos_ids)
        moving = make_moving(scheduler, self.arena, self.folder) if swap else None
        return Engine(EngineParts(self.chain, bytes_, scheduler, Sampler(config.vocab), limits, moving=moving, adapting=adapting))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    model = open_model(find_model("smollm2"))
    model = replace(model, weights=recode(model.weights, "auto"))
    chain = make_chain(model, "cpu", 2)
    assert isinstance(chain, NativeChain)
    arena = Arena(128, chain.page_layout.page_bytes)
    folder = tmp_path_factory.mktemp("adapters")
    for index in range(COUNT):
        write_adapter(folder / str(index), adapter(model.config, index))
    yield Bench(model, chain, arena, folder)
    arena.close()


def uses_of(i: int) -> list[AdapterUse]:
    """Request ``i`` of nine: each adapter once, and none."""
    return [AdapterUse(i + 1, 1.0)] if i < COUNT else []


def add(answers: Answers, outputs: list[TokenOutput]) -> None:
    for output in outputs:
        tokens, logprobs, _ = answers.get(output.request_id, ([], [], None))
        tokens += output.tokens
        logprobs += [one.logprob for one in output.logprobs or ()]
        answers[output.request_id] = tokens, logprobs, output.finish


def finish(engine: Engine) -> tuple[Answers, list[Refused]]:
    answers: Answers = {}
    refused: list[Refused] = []
    for _ in range(5000):
        outputs = engine.step()
        engine.check_integrity()
        refused += engine.take_refused()
        if outputs is not None:
            add(answers, outputs.outputs)
        elif engine.live == 0 and not engine.reading_adapters:
            return answers, refused
        else:
            engine.wait_compiled(0.5)
    raise AssertionError("the engine does not come to an end")


def run(engine: Engine, params: SamplingParams = PARAMS) -> Answers:
    for i in range(COUNT + 1):
        engine.submit(Submit(i, PROMPT, params, adapters=uses_of(i)))
    answers, refused = finish(engine)
    assert refused == []
    return answers


@pytest.fixture(scope="module")
def alone(bench: Bench) -> Answers:
    found: Answers = {}
    for i in range(COUNT + 1):
        engine = bench.engine()
        engine.submit(Submit(i, PROMPT, PARAMS, adapters=uses_of(i)))
        found |= finish(engine)[0]
        engine.close()
    assert len({tuple(logprobs) for _, logprobs, _ in found.values()}) == COUNT + 1, "adapters change something"
    return found


def test_beside_eight_other_adapters_and_in_chunks(bench: Bench, alone: Answers) -> None:
    for step_tokens in (256, 16):
        engine = bench.engine(step_tokens=step_tokens)
        assert run(engine) == alone
        gauges = engine.gauges().adapters
        assert gauges is not None
        assert (gauges.registered, gauges.resident, gauges.loading, gauges.loads) == (COUNT, COUNT, 0, COUNT)
        engine.close()


@pytest.mark.parametrize("swap", [False, True])
def test_evicted_and_loaded_again_on_a_tiny_pool(bench: Bench, alone: Answers, swap: bool) -> None:
    engine = bench.engine(pages=9, swap=swap)
    assert run(engine) == alone
    assert run(engine) == alone
    gauges = engine.gauges().adapters
    assert gauges is not None
    assert gauges.evictions > 0
    assert gauges.loads > COUNT
    engine.close()


@pytest.mark.parametrize("swap", [False, True])
def test_set_aside_and_evicted_at_each_step(bench: Bench, alone: Answers, swap: bool) -> None:
    engine = bench.engine(pages=24, swap=swap)
    for i in (0, 3, COUNT):
        engine.submit(Submit(i, PROMPT, PARAMS, adapters=uses_of(i)))
    answers: Answers = {}
    for turn in range(3000):
        outputs = engine.step()
        if outputs is not None:
            add(answers, outputs.outputs)
        elif not engine.live:
            break
        for item in engine.scheduler.items:
            if turn % 5 == 0:
                engine.scheduler.preempt(item)
        store = engine.scheduler.adapters.store
        store.make_room(min(24, engine.scheduler.pool.available + store.evictable))
        engine.check_integrity()
        engine.wait_compiled(0.5)
    assert answers == {i: alone[i] for i in (0, 3, COUNT)}
    assert engine.scheduler.adapters.loads > 4
    engine.close()


def test_pages_of_prompts_are_found_by_the_same_adapter_only(bench: Bench, alone: Answers) -> None:
    engine = bench.engine(reuse=True)
    assert run(engine) == alone
    assert engine.gauges().prefix_found_tokens == 0
    assert run(engine) == alone
    assert engine.gauges().prefix_found_tokens == 16 * (COUNT + 1)
    engine.close()


def test_running_requests_keep_their_generation(bench: Bench, alone: Answers) -> None:
    engine = bench.engine()
    adapting = engine.adapting
    assert adapting is not None
    engine.submit(Submit(0, PROMPT, PARAMS, adapters=uses_of(0)))
    for _ in range(50):
        if engine.step() is not None:
            break
        engine.wait_compiled(0.5)
    card = adapting.register("a0", bench.folder / "1", expected_generation=1)
    assert card.generation == COUNT + 1
    with pytest.raises(HeadraceError, match="generation 1 is not registered"):
        engine.submit(Submit(5, PROMPT, PARAMS, adapters=uses_of(0)))
    engine.submit(Submit(1, PROMPT, PARAMS, adapters=[AdapterUse(card.generation)]))
    adapting.remove("a0", COUNT + 1)
    answers, refused = finish(engine)
    assert refused == []
    assert answers[0][0] == alone[0][0][-len(answers[0][0]) :]
    assert answers[1] == alone[1]
    assert engine.scheduler.adapters.store.known(1) is None
    assert engine.scheduler.adapters.store.known(card.generation) is None
    assert engine.scheduler.pool.held == 0
    engine.close()


def test_a_file_damaged_later_costs_its_requests_one_error(bench: Bench, alone: Answers, tmp_path: Path) -> None:
    engine = bench.engine()
    assert engine.adapting is not None
    write_adapter(tmp_path, adapter(bench.model.config, 20))
    card = engine.adapting.register("bad", tmp_path)
    file = tmp_path / ADAPTER_WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    for i in range(3):
        engine.submit(Submit(i, PROMPT, PARAMS, adapters=uses_of(i)))
    engine.submit(Submit(50, PROMPT, SamplingParams(max_tokens=4, n=3, seed=3), adapters=[AdapterUse(card.generation)]))
    engine.submit(Submit(51, PROMPT, PARAMS, adapters=[AdapterUse(1), AdapterUse(card.generation)]))
    answers, refused = finish(engine)
    assert answers == {i: alone[i] for i in range(3)}
    assert sorted((one.request_id, one.code) for one in refused) == [(50, "model_file"), (51, "model_file")]
    gauges = engine.gauges().adapters
    assert gauges is not None
    assert gauges.failures >= 1
    engine.close()


@pytest.mark.parametrize(
    ("uses", "problem"),
    [
        ([AdapterUse(99)], "generation 99 is not registered"),
        ([AdapterUse(1), AdapterUse(1)], "named twice"),
        ([AdapterUse(1, float("nan"))], "scale is from"),
        ([AdapterUse(1, 1e9)], "scale is from"),
        ([AdapterUse(1 + i) for i in range(9)], "at most 8 adapters"),
    ],
)
def test_bad_uses_are_refused(bench: Bench, uses: list[AdapterUse], problem: str) -> None:
    engine = bench.engine()
    with pytest.raises(HeadraceError, match=problem):
        engine.submit(Submit(1, PROMPT, PARAMS, adapters=uses))
    engine.check_integrity()
    assert engine.live == 0
    engine.close()


def ask(engine: Engine, call: AdapterCall) -> AdapterAnswer | AdapterList:
    assert engine.adapting is not None
    engine.adapting.ask(call)
    for _ in range(200):
        answers = engine.adapting.take_answers()
        if answers:
            return answers[0]
        engine.step()
        engine.wait_compiled(0.1)
    raise AssertionError("no answer")


def test_calls_are_answered(bench: Bench) -> None:
    engine = bench.engine()

    def card(call: AdapterCall) -> AdapterCard:
        answer = ask(engine, call)
        assert isinstance(answer, AdapterAnswer)
        assert answer.card is not None, answer.message
        return answer.card

    def code(call: AdapterCall) -> tuple[str, str | None]:
        answer = ask(engine, call)
        assert isinstance(answer, AdapterAnswer)
        assert answer.card is None
        return answer.code, answer.param

    folder = str(bench.folder / "0")
    fresh = card(RegisterAdapter(1, "new", folder, expected_generation=0, pin=True))
    assert (fresh.name, fresh.generation, fresh.pinned, fresh.state, fresh.rank) == ("new", COUNT + 1, True, "loading", 2)
    assert (fresh.modules, fresh.base_model) == (["q", "down"], "random")
    assert code(RegisterAdapter(2, "new", folder, expected_generation=0)) == ("adapter_conflict", "expected_generation")
    assert code(RegisterAdapter(3, "bad", folder + "x"))[0] == "model_file"
    assert code(RegisterAdapter(4, "", folder)) == ("invalid_value", "lora_name")
    finish(engine)
    assert engine.scheduler.adapters.store.make_room(100)
    listed = ask(engine, ListAdapters(5))
    assert isinstance(listed, AdapterList)
    assert [(one.name, one.state) for one in listed.cards][-2:] == [("a7", "registered"), ("new", "pinned")]
    assert not card(PinAdapter(6, "new", pinned=False)).pinned
    assert engine.scheduler.adapters.store.make_room(128)
    assert code(RemoveAdapter(7, "new", expected_generation=1)) == ("adapter_conflict", "expected_generation")
    assert card(RemoveAdapter(8, "new", expected_generation=COUNT + 1)).generation == COUNT + 1
    assert code(RemoveAdapter(9, "new")) == ("adapter_not_found", "lora_name")
    assert code(PinAdapter(10, "new", pinned=True)) == ("adapter_not_found", "lora_name")
    engine.check_integrity()
    engine.close()


def test_the_python_api_takes_names(bench: Bench) -> None:
    with LLM(settings=EngineSettings(threads=1, pool_mib=128)) as llm:
        for index in range(2):
            assert llm.register_adapter(f"a{index}", bench.folder / str(index)).generation == index + 1
        params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, top_logprobs=0)
        prompts = [PROMPT] * 4
        together = llm.generate(prompts, params, adapters=["a0", None, {"a1": 0.5}, {"a0": 1.0, "a1": -0.5}])
        assert [llm.generate(PROMPT, params, adapters=one)[0].answers for one in ("a0", None, {"a1": 0.5})] == [
            one.answers for one in together[:3]
        ]
        assert len({str(one.answers) for one in together}) == 4
        with pytest.raises(HeadraceError, match="no adapter is called 'a7'"):
            llm.generate(PROMPT, params, adapters="a7")
        with pytest.raises(HeadraceError, match="4 prompts need as many adapters, not 1"):
            llm.generate(prompts, params, adapters=["a0"])
        llm.remove_adapter("a0")
        assert llm._engine.scheduler.adapters.store.names == 1


def test_the_client_of_an_engine_process(bench: Bench) -> None:
    async def work() -> None:
        client = EngineClient()
        await client.start(EngineSettings(threads=1, pool_mib=64))
        try:
            made = await asyncio.gather(*(client.register_adapter(f"a{i}", str(bench.folder / str(i))) for i in range(COUNT)))
            assert [card.generation for card in made] == list(range(1, COUNT + 1))
            answers: Answers = {}
            params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, top_logprobs=0)
            for uses in ([], [AdapterUse(made[3].generation)]):
                async with client.submit(Submit(client.new_request_id(), PROMPT, params, adapters=uses)) as stream:
                    async for outputs in stream:
                        add(answers, outputs)
            assert len({tuple(logprobs) for _, logprobs, _ in answers.values()}) == 2
            assert [card.uses for card in await client.list_adapters()] == [0, 0, 0, 1, 0, 0, 0, 0]
            assert (await client.pin_adapter("a1", pinned=True)).pinned
            with pytest.raises(HeadraceError, match="generation 1 has the name 'a0', not 7"):
                await client.remove_adapter("a0", expected_generation=7)
            await client.remove_adapter("a0")
            assert [card.name for card in await client.list_adapters()] == [f"a{i}" for i in range(1, COUNT)]
            gauges = client.gauges.adapters
            assert gauges is not None
            assert gauges.loads in (1, 2)  # the pinned one may have come in by now
        finally:
            await client.stop()
        with pytest.raises(HeadraceError, match="engine process has ended"):
            await client.list_adapters()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_embeddings_use_the_adapters_of_their_request(bench: Bench) -> None:
    """The same bits alone, in pieces and beside others; other than the base's, and of each adapter its own."""

    def embed(engine: Engine, wanted: list[int]) -> dict[int, list[float]]:
        for i in wanted:
            engine.submit(Submit(i, [*PROMPT, 100 + i % 2], PARAMS, embed=True, adapters=uses_of(i)))
        found: dict[int, list[float]] = {}
        while engine.live:
            outputs = engine.step()
            if outputs is None:
                engine.wait_compiled(1.0)
                continue
            found |= {one.request_id: one.embedding for one in outputs.outputs if one.embedding is not None}
        engine.close()
        return found

    together = embed(bench.engine(step_tokens=16), list(range(COUNT + 1)))
    assert len({tuple(one) for one in together.values()}) == COUNT + 1
    for i in (0, 5, COUNT):
        assert embed(bench.engine(), [i]) == {i: together[i]}
