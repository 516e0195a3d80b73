"""The composition matrix: mechanisms switched on in pairs, tokens and logprobs bit for bit those of each request alone."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from drafting import knowing, small_draft
from knowing import FreeRows
from quantised_models import RoundedWeights
from wandering import Wandering

from headrace.engine.adapters import Adapters
from headrace.engine.adapting import Adapting
from headrace.engine.allowance import Allowance
from headrace.engine.build import make_chain, make_keeping, make_moving, make_scheduler
from headrace.engine.grammars import LazyGrammars
from headrace.engine.lending_wire import Lending
from headrace.engine.loop import Engine, EngineParts
from headrace.engine.request import Limits
from headrace.engine.sampling_params import GrammarSpec, SamplingParams
from headrace.engine.speculating import Speculating
from headrace.engine.training import Training, TrainingParts
from headrace.engine.training_wire import StartTraining
from headrace.engine.viewing import Viewing
from headrace.engine.wire import AdapterUse, Submit, TokenLogprob, TokenOutput
from headrace.kernels.interface import KvFormat, TorchKv
from headrace.kernels.native_chain import NativeChain
from headrace.kernels.sampler import Sampler
from headrace.memory.arena import Arena
from headrace.memory.disk_tier import slot_bytes
from headrace.memory.moves import MoveOptions
from headrace.memory.page_pool import PagePool
from headrace.memory.views import ViewPlan, Views
from headrace.models.adapter import Adapter, LowRank, module_sides, round_bf16
from headrace.models.adapter_file import write_adapter
from headrace.models.catalog import OpenModel, find_model, open_model
from headrace.models.config import ModelConfig
from headrace.models.recoding import recode
from headrace.scheduling.keeping import KeepOptions
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.swapping import SwapOptions
from headrace.speculation.proposer import Proposer
from headrace.text.open_tokenizer import open_tokenizer
from headrace.training.backbone import Backbone
from headrace.training.dataset_file import Sample, write_dataset
from headrace.training.settings import TrainingSettings

pytestmark = pytest.mark.model

TEXTS = (
    "The capital of France is",
    "Once upon a time, in a land of rivers and mills, there lived a miller who",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "A headrace is the channel that leads the water to the wheel. Below the wheel the water leaves by the tailrace, and",
    "A headrace is the channel that leads the water to the wheel. Below the wheel the water is slow and",
)
SCHEMA = '{"type":"object","properties":{"name":{"type":"string","maxLength":8}},"required":["name"],"additionalProperties":false}'
OUTPUT, LONG_OUTPUT = 10, 36
POOL, STARVED, THIRD = 256, 12, 9  # pages; eight requests need 27
VIEWS = ViewPlan(40, 16)
ADAPTERS = 3


@dataclass(frozen=True, slots=True)
class Mix:
    """One composition: how the engine runs, and what its requests ask for beside plain sampling."""

    step_tokens: int = 256
    threads: int = 2
    pages: int = POOL
    shuffle: int = 0
    swap: str = "recompute"
    forks: bool = False
    grammar: bool = False
    logprobs: bool = False
    penalties: bool = False
    weights: str = "auto"
    kv: KvFormat = "bf16"
    reuse: bool = False
    kept: bool = False
    tenants: int = 1
    priorities: bool = False
    policy: str = "fair"
    views: bool = False
    adapters: bool = False
    drafts: str = ""
    training: bool = False
    moved: str = ""
    lent: bool = False


MECHANISMS: dict[str, dict[str, int | bool | str]] = {
    "chunks of 16": {"step_tokens": 16},
    "chunks of 48": {"step_tokens": 48},
    "forks": {"forks": True},
    "recompute": {"pages": STARVED},
    "swap": {"pages": THIRD, "swap": "swap"},
    "grammar": {"grammar": True},
    "logprobs": {"logprobs": True},
    "one thread": {"threads": 1},
    "arrival order": {"shuffle": 3},
    "penalties": {"penalties": True},
    "rows of 8 bits": {"weights": "a8"},
    "weights w4": {"weights": "w4"},
    "q4 with 8-bit activations": {"weights": "q4"},
    "kv8": {"kv": "kv8"},
    "kv4": {"kv": "kv4"},
    "prefix reuse": {"reuse": True},
    "pages kept on disk": {"reuse": True, "kept": True},
    "fair shares": {"tenants": 3},
    "priorities": {"priorities": True, "policy": "priority"},
    "views": {"views": True},
    "adapters": {"adapters": True},
    "speculation": {"drafts": "knowing"},
    "draft model": {"drafts": "model"},
    "training": {"training": True},
    "moves between engines": {"moved": "at any time"},
    "hand-off": {"moved": "behind its first token"},
    "lent pages": {"lent": True},
}

ALIKE = ("chunks of 16", "one thread", "arrival order", "weights w4", "weights w8", "q4 with 8-bit activations", "kv4")
"""To a hand-off no other than what it is paired with, or than to moves at any time."""
ALSO_ALIKE = (
    "chunks of 48",
    "logprobs",
    "penalties",
    "rows of 8 bits",
    "pages kept on disk",
    "fair shares",
    "priorities",
    "views",
    "hand-off",
)
"""Beside them, to a draft model no other than to guesses of any other kind."""
PAGED = ("forks", "swap", "prefix reuse", "pages kept on disk", "views", "adapters", "moves between engines")
"""What a pool that grows and shrinks could harm: whoever holds, keeps or shows pages."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The real model on one and on two threads, and everything that is known of requests run alone."""

    model: OpenModel
    chains: dict[tuple[str, KvFormat], NativeChain]
    arenas: dict[TorchKv, Arena]
    grammars: LazyGrammars
    prompts: list[list[int]]
    alone: dict[tuple[str, KvFormat, bytes], list[Answer]]
    folder: Path
    backbones: list[Backbone]

    def backbone(self) -> Backbone:
        """The model's weights for training, read once for all engines."""
        if not self.backbones:
            self.backbones.append(Backbone(self.model.config, self.model.weights))
        return self.backbones[0]

    def chain(self, weights: str, kv: KvFormat, threads: int) -> NativeChain:
        """The model with its matrices and pages in those forms, made at its first use."""
        if (weights, kv) not in self.chains:
            source = self.model.weights
            recoded = RoundedWeights(source, 64, 8) if weights == "q4" else recode(source, weights)
            files = self.model.files if weights != "q4" else ()  # codes that only this test makes are not kept
            chain = make_chain(dataclasses.replace(self.model, weights=recoded, files=files), "cpu", threads, kv)
            assert isinstance(chain, NativeChain)
            self.chains[weights, kv] = chain
        self.chains[weights, kv].set_threads(threads)
        return self.chains[weights, kv]

    def arena(self, chain: NativeChain) -> Arena:
        """A pool of pages as the chain lays them out."""
        layout = chain.page_layout
        if layout.kv not in self.arenas:
            self.arenas[layout.kv] = Arena(POOL, layout.page_bytes, aliases=VIEWS.rows)
        return self.arenas[layout.kv]


@dataclass(slots=True)
class Answer:
    """All that a choice got."""

    tokens: list[int]
    logprobs: list[TokenLogprob]
    prompt_logprobs: list[TokenLogprob]
    finish: str | None = None

    def add(self, output: TokenOutput) -> None:
        self.tokens += output.tokens
        self.logprobs += output.logprobs or []
        self.prompt_logprobs += output.prompt_logprobs or []
        self.finish = output.finish


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    model = open_model(find_model("smollm2"))
    tokenizer = open_tokenizer(model.tokenizer_source)
    grammars = LazyGrammars(lambda: tokenizer, model.config.vocab)
    made = Bench(model, {}, {}, grammars, [tokenizer.encode(text) for text in TEXTS], {}, tmp_path_factory.mktemp("swap"), [])
    row = Sample(np.arange(24, dtype=np.int32), np.ones(24, np.float32))
    write_dataset(made.folder / "data", [row], vocab=model.config.vocab)
    for index in range(ADAPTERS):
        write_adapter(made.folder / f"adapter {index}", small_adapter(model.config, index))
    yield made
    for arena in made.arenas.values():
        arena.close()


def small_adapter(config: ModelConfig, seed: int) -> Adapter:
    """Rank 2 on the queries and on what attention puts out, enough to change every answer."""
    generator = np.random.default_rng(seed)
    layers = []
    for sides in module_sides(config):
        made = {}
        for name in ("q", "o"):
            a, b = (generator.standard_normal(shape, np.float32) for shape in ((2, sides[name][0]), (sides[name][1], 2)))
            made[name] = LowRank(round_bf16(a), round_bf16(b), 0.01)
        layers.append(made)
    return Adapter(tuple(layers), "random")


def adapters_of(i: int) -> list[AdapterUse]:
    """No adapter, one of three, or two added up."""
    return [[], [AdapterUse(1, 1.0)], [AdapterUse(2, 0.5)], [AdapterUse(3, 1.0), AdapterUse(1, -0.5)]][i % 4]


def requests_of(mix: Mix, bench: Bench) -> list[Submit]:
    """Eight requests: four prompts, greedy and sampled, some of them with the mechanism in question."""
    submits = []
    output = OUTPUT if mix.pages == POOL else LONG_OUTPUT
    for i in range(8):
        params = SamplingParams(
            max_tokens=output - i % 3, temperature=(0.0, 0.9)[i % 2], top_p=(1.0, 0.95)[i // 2 % 2], seed=i, ignore_eos=i != 5,
            n=2 if mix.forks and i % 2 == 1 else 1,
            top_logprobs=3 if mix.logprobs and i % 3 != 2 else None,
            prompt_logprobs=2 if mix.logprobs and i % 2 == 0 else None,
            grammar=GrammarSpec("json_schema", SCHEMA) if mix.grammar and i in (1, 4) else None,
            repetition_penalty=1.2 if mix.penalties else 1.0, frequency_penalty=0.3 if mix.penalties and i % 2 else 0.0,
        )  # fmt: skip
        share, priority = f"tenant {i % mix.tenants}", (i * 5) % 17 - 8 if mix.priorities else 0
        weight = 1 + i % mix.tenants
        uses = adapters_of(i) if mix.adapters else []
        prompt = bench.prompts[i % len(TEXTS)]
        submits.append(Submit(i, prompt, params, priority=priority, share=share, weight=weight, adapters=uses))
    return submits


def engine_of(mix: Mix, bench: Bench, proposer: Proposer | None = None) -> Engine:
    chain = bench.chain(mix.weights, mix.kv, mix.threads)
    arena = bench.arena(chain)
    swap = SwapOptions(MoveOptions(4 * POOL), slot_bytes(arena.page_bytes), mix.swap) if mix.swap != "recompute" else None
    scheduling = SchedulingSettings(
        step_tokens=mix.step_tokens, prefix_reuse="on" if mix.reuse else "off", policy=mix.policy,
        fair_among="adapters" if mix.adapters else "keys",
    )  # fmt: skip
    keep = KeepOptions(4 * POOL, slot_bytes(arena.page_bytes)) if mix.kept else None
    scheduler = make_scheduler(scheduling, mix.pages, chain, None, swap, keep)
    keeping = None
    if scheduler.keeping is not None:
        scheduler.keeping.rates.read = 1e15  # reading is always foreseen to be quicker
        keeping = make_keeping(scheduler, arena, bench.folder / "kept", f"{mix.weights}{mix.kv}-{mix.threads}")
        assert keeping is not None
    moving = make_moving(scheduler, arena, bench.folder) if swap is not None else None
    config = bench.model.config
    limits = Limits(config.vocab, config.context_length, config.eos_ids)
    pages = arena.rows if mix.views else arena.bytes[: mix.pages]
    viewing = Viewing(Views(arena, VIEWS)) if mix.views else None
    sampler = Sampler(config.vocab, mix.threads)
    adapting = Adapting(scheduler, Adapters(config, scheduler.adapters.store, pages))
    for index in range(ADAPTERS):
        adapting.register(f"adapter {index}", bench.folder / f"adapter {index}")
    speculating = None
    if proposer is not None:
        scheduler.cost = FreeRows()
        speculating = Speculating([proposer], scheduler)
    parts = EngineParts(
        chain, pages, scheduler, sampler, limits, bench.grammars, moving=moving, viewing=viewing, keeping=keeping,
        adapting=adapting, speculating=speculating, training=training_of(bench, mix) if mix.training else None,
    )  # fmt: skip
    return Engine(parts)


def training_of(bench: Bench, mix: Mix) -> Training:
    """A job on the model, in pages of its own so that the others' pools stay as small as they are meant to be."""
    pages = np.empty((256, 2**18), np.uint8)
    training = Training(TrainingParts(bench.model.config, bench.backbone, PagePool(256, 16), pages, mix.threads, 0, 1.0, 1.0))
    settings = TrainingSettings(rank=2, targets=("q", "v", "down"), max_tokens=24, epochs=1000)
    training.start(StartTraining("job", settings, str(bench.folder / "data"), str(bench.folder / "job")))
    while training.preparing:
        time.sleep(0.01)  # asking without a pause takes the interpreter from the thread that prepares: minutes instead of a second
        training.look()
    assert training.active, training.take_events()
    return training


def run(
    engine: Engine,
    submits: list[Submit],
    arrivals: random.Random | None,
    wandering: Wandering | None = None,
    lend: Callable[[], None] = lambda: None,
) -> dict[int, list[Answer]]:
    """Everything that each request got; with ``arrivals``, requests come in random order between steps. ``lend``: before each."""
    answers = {submit.request_id: [Answer([], [], []) for _ in range(submit.params.n)] for submit in submits}
    coming = list(submits)
    if arrivals is not None:
        arrivals.shuffle(coming)
    while coming or engine.live or (wandering is not None and wandering.busy):
        while coming and (arrivals is None or arrivals.random() < 0.4 or not engine.live):
            engine.submit(coming.pop(0))
        if wandering is not None:
            wandering.turn()
        lend()
        outputs = engine.step()
        engine.train(lambda: True)
        engine.check_integrity()
        for output in outputs.outputs if outputs is not None else ():
            answers[output.request_id][output.choice].add(output)
        if outputs is None:
            engine.wait_compiled(1.0)
    return answers


def lender_of(engine: Engine, bench: Bench, mix: Mix) -> Callable[[], None]:
    """Another model that takes pages and brings them back as it likes."""
    arena, rng = bench.arena(bench.chain(mix.weights, mix.kv, mix.threads)), random.Random(5)
    most = min(mix.pages, 40)
    allowance = Allowance(engine.scheduler, arena, Lending(most * arena.page_bytes, most * arena.page_bytes), mix.pages)

    def lend() -> None:
        if rng.random() < 0.25:
            allowance.allow(rng.choice((most // 2, 3 * most // 4, most)) * arena.page_bytes)
        allowance.follow()

    return lend


def expect_short_answers(engine: Engine, bench: Bench) -> None:
    """Answers that end at once let the scheduler admit more than the pool can hold to the end, so that it must preempt."""
    ended = SamplingParams(max_tokens=100, logit_bias={bench.model.config.eos_ids[0]: 100.0})
    for i in range(8):
        engine.submit(Submit(100 + i, bench.prompts[0], ended))
        while engine.live:
            engine.step()


def alone(submit: Submit, bench: Bench, mix: Mix) -> list[Answer]:
    """What the request gets by itself: prompt in one step, one thread, the same weights and pages. Run once and remembered."""
    submit = msgspec.structs.replace(submit, priority=0, share="", weight=1)
    key = mix.weights, mix.kv, msgspec.json.encode(submit)
    if key not in bench.alone:
        engine = engine_of(Mix(threads=1, weights=mix.weights, kv=mix.kv), bench)
        bench.alone[key] = run(engine, [submit], None)[submit.request_id]
        engine.close()
    return bench.alone[key]


def proposer_of(mix: Mix, bench: Bench, submits: list[Submit]) -> Proposer | None:
    """Who guesses: one that has read the answers, or the same model in other codes."""
    if mix.drafts == "model":
        return small_draft(bench.chain("w4", "bf16", mix.threads), bench.model.config.vocab)
    said = ((submit.prompt, answer.tokens) for submit in submits for answer in alone(submit, bench, mix))
    return knowing(said, bench.model.config.vocab) if mix.drafts else None


PAIRS = [  # two values of one switch can't be on together
    (first, second)
    for first, second in itertools.combinations(MECHANISMS, 2)
    if not MECHANISMS[first].keys() & MECHANISMS[second].keys()
    and not ("hand-off" in (first, second) and first in ALIKE)
    and not ("draft model" in (first, second) and {first, second} & {*ALIKE, *ALSO_ALIKE})
    and not ("lent pages" in (first, second) and not {first, second} & set(PAGED))
]


def check(mix: Mix, bench: Bench) -> None:
    """Every request gets what it gets alone, and what the mix is about has happened."""
    if mix.kept:  # an earlier server's pages
        warm = engine_of(dataclasses.replace(mix, pages=POOL, swap="recompute"), bench)
        run(warm, requests_of(mix, bench), None)
        warm.close()
    submits = requests_of(mix, bench)
    engine = engine_of(mix, bench, proposer_of(mix, bench, submits))
    if mix.pages < POOL:
        expect_short_answers(engine, bench)
    if mix.reuse and not mix.kept:  # the same once before: something to find beside what the requests share among themselves
        run(engine, [msgspec.structs.replace(submit, request_id=100 + submit.request_id) for submit in submits], None)
        assert engine.scheduler.pool.cached > 0
    wandering = Wandering(engine, bench.folder, submits, once="first" in mix.moved) if mix.moved else None
    lend = lender_of(engine, bench, mix) if mix.lent else lambda: None
    answers = run(engine, submits, random.Random(mix.shuffle) if mix.shuffle else None, wandering, lend)
    engine.scheduler.pool.give_back(POOL)
    if wandering is not None:
        wandering.close()
        assert wandering.moved > 0 or mix.pages < POOL, "nobody moved"
    for submit in submits:
        assert answers[submit.request_id] == alone(submit, bench, mix), f"request {submit.request_id}"
    pool, store = engine.scheduler.pool, engine.scheduler.adapters.store
    until = time.monotonic() + 30
    while pool.free != mix.pages - store.resident_pages and time.monotonic() < until:
        time.sleep(0.01)  # a page that is on its way to the disk is free when it is there
        engine.step()
    assert pool.free == mix.pages - store.resident_pages
    adapters = engine.gauges().adapters
    assert adapters is not None
    assert adapters.loads >= ADAPTERS if mix.adapters else not adapters.loads
    drafts = engine.gauges().speculation
    assert not mix.drafts or (drafts is not None and drafts.drafted > drafts.accepted > 0), "nothing was accepted or rejected"
    moves = engine.gauges().moves
    assert mix.swap != "swap" or (moves is not None and moves.written_pages > 0), "nothing was swapped"
    if mix.pages < POOL:
        assert engine.gauges().preemptions > 0, "the pool was meant to be too small"
    views = engine.gauges().views
    if mix.views and mix.kv == "bf16" and (mix.forks or mix.reuse or mix.pages < POOL):
        assert views is not None
        assert views.shown_pages + views.kept_pages > 0, "no pages had to be mapped one after the other"
    if mix.reuse:
        assert engine.gauges().prefix_found_tokens > 0
    training = engine.gauges().training
    assert not mix.training or (training is not None and training.beside > 2), "nothing was trained between the steps"
    kept = engine.gauges().kept
    assert not mix.kept or (kept is not None and kept.read_pages > 0), "nothing was read from the disk"
    engine.close()


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{first} with {second}" for first, second in PAIRS])
def test_pair(first: str, second: str, bench: Bench) -> None:
    both = MECHANISMS[first] | MECHANISMS[second]
    check(dataclasses.replace(Mix(), **both), bench)  # type: ignore[arg-type]


@pytest.mark.parametrize("pages", ["recompute", "swap"])
def test_shares_and_priorities_on_few_pages(pages: str, bench: Bench) -> None:
    """The fair policy with requests of different priorities in each share, which it preempts."""
    both = MECHANISMS["fair shares"] | MECHANISMS[pages] | {"priorities": True}
    check(dataclasses.replace(Mix(), **both), bench)  # type: ignore[arg-type]
