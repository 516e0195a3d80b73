"""A tiny model with real arithmetic and a real memory: each row's state is folded from what its pages hold, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from knowing import FreeRows

from headrace.engine.loop import Engine, EngineParts, GrammarSource
from headrace.engine.request import Limits
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.speculating import Speculating
from headrace.engine.wire import Submit, TokenLogprob, TokenOutput
from headrace.kernels.interface import Bytes, Float32, Int32, PageLayout, StepBatch
from headrace.kernels.sampler import Sampler
from headrace.memory.page_pool import PagePool
from headrace.models.config import ModelConfig
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.speculation.proposer import Proposer

VOCAB, HIDDEN, PAGE_TOKENS, EOS = 97, 8, 4, 1


class ToyChain:
    """Position p's row is a fold over the tokens found in the pages at 0 … p: a wrong page, copy or position shows at once.

    A row whose own token is ``poison`` turns into NaN.
    """

    def __init__(self, *, poison: int | None = None, context_length: int = 512) -> None:
        self.config = ModelConfig("toy", HIDDEN, VOCAB, context_length, 1e-5, (), eos_ids=(EOS,))
        self.page_layout = PageLayout(PAGE_TOKENS, 4 * PAGE_TOKENS)
        self.steps: list[int] = []
        self._poison = poison
        rng = np.random.default_rng(5)
        self._embedding = rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
        self._head = rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
        self._kept: Float32 = np.zeros((0, HIDDEN), np.float32)

    def forward(self, batch: StepBatch, pool: Bytes) -> None:
        """Write every row's token into its page, then fold each kept row from the pages."""
        memory = pool.view(np.int32)
        self.steps.append(len(batch.token_ids))
        slices = len(batch.slice_starts) - 1
        pages_of = {}
        for s in range(slices):
            pages = batch.page_ids[batch.page_starts[s] : batch.page_starts[s + 1]]
            for row in range(batch.slice_starts[s], batch.slice_starts[s + 1]):
                position = batch.positions[row]
                memory[pages[position // PAGE_TOKENS], position % PAGE_TOKENS] = batch.token_ids[row]
                pages_of[row] = pages
        self._kept = np.array([self._fold(memory, pages_of[row], batch.positions[row]) for row in batch.output_rows], np.float32)
        self._kept = self._kept.reshape(len(batch.output_rows), HIDDEN)

    def hidden(self) -> Float32:
        """The kept rows."""
        return self._kept

    def logits(self, first: int, count: int) -> Float32:
        """One product a row, so that rows can't touch each other."""
        rows = [self._head @ self._kept[row] for row in range(first, first + count)]
        return np.ascontiguousarray(np.stack(rows), np.float32)

    def greedy(self, first: int, count: int) -> Int32:
        """Arg-max of each row."""
        tokens: Int32 = self.logits(first, count).argmax(axis=1).astype(np.int32)
        return tokens

    def _fold(self, memory: Int32, pages: Int32, last: int) -> Float32:
        state = np.zeros(HIDDEN, np.float32)
        token = 0
        for position in range(last + 1):
            token = int(memory[pages[position // PAGE_TOKENS], position % PAGE_TOKENS])
            state = np.tanh(np.roll(state, 1) * np.float32(1.7) + self._embedding[token % VOCAB])
        return state * np.float32(np.nan) if token == self._poison else state * np.float32(2.0)


@dataclass
class Clock:
    """A clock that tests move."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Shape:
    """How a toy engine is built. ``step_tokens`` below 16 are set behind the settings' back: chunks of any size must work."""

    pages: int = 64
    step_tokens: int = 64
    seconds: float | None = None
    policy: str = "fcfs"
    max_waiting: int = 1024
    seed: int = 0
    logit_rows: int = 256
    prefix_reuse: str = "on"
    proposers: Sequence[Proposer] = ()
    promised_ms: int | None = None


def toy_engine(
    shape: Shape | None = None,
    chain: ToyChain | None = None,
    clock: Callable[[], float] | None = None,
    grammars: GrammarSource | None = None,
) -> Engine:
    """An engine around a toy chain."""
    shape, chain = shape or Shape(), chain or ToyChain()
    settings = SchedulingSettings(
        step_tokens=max(16, shape.step_tokens),
        max_waiting=shape.max_waiting,
        max_logit_rows=max(16, shape.logit_rows),
        prefix_reuse=shape.prefix_reuse,
        first_token_ms=shape.promised_ms,
    )
    cost = FreeRows() if shape.proposers else Cost()
    scheduler = Scheduler(settings, PagePool(shape.pages, PAGE_TOKENS), cost, POLICIES.get(shape.policy))
    scheduler.budget = type(scheduler.budget)(shape.step_tokens, shape.seconds, 2048, shape.logit_rows, 256)
    pages = np.full((shape.pages, chain.page_layout.page_bytes), 77, np.uint8)
    limits = Limits(VOCAB, chain.config.context_length, chain.config.eos_ids, shape.seed)
    speculating = Speculating(shape.proposers, scheduler) if shape.proposers else None
    return Engine(EngineParts(chain, pages, scheduler, Sampler(VOCAB), limits, grammars, clock or Clock(), speculating=speculating))


@dataclass
class Result:
    """All that one choice got."""

    tokens: list[int]
    logprobs: list[TokenLogprob]
    prompt_logprobs: list[TokenLogprob] | None = None
    finish: str | None = None
    stop_token: int | None = None
    embedding: list[float] | None = None
    cached_tokens: int = field(default=0, compare=False)  # depends on when others came, as tokens never do


Results = dict[tuple[int, int], Result]


def collect(results: Results, outputs: list[TokenOutput]) -> None:
    """Add a step's outputs."""
    for output in outputs:
        result = results.setdefault((output.request_id, output.choice), Result([], []))
        assert result.finish is None, "an output after the end"
        result.tokens += output.tokens
        result.logprobs += output.logprobs or []
        result.prompt_logprobs = output.prompt_logprobs if output.prompt_logprobs is not None else result.prompt_logprobs
        result.embedding = output.embedding or result.embedding
        result.cached_tokens = max(result.cached_tokens, output.cached_tokens)
        result.finish, result.stop_token = output.finish, output.stop_token


def run(engine: Engine, *, most: int = 3000) -> Results:
    """Step until everything has ended, proving integrity after each step."""
    results: Results = {}
    for _ in range(most):
        outputs = engine.step()
        engine.check_integrity()
        if outputs is not None:
            collect(results, outputs.outputs)
        elif engine.live == 0:
            return results
        else:
            engine.wait_compiled(1.0)
    raise AssertionError("the engine does not come to an end")


def submit(engine: Engine, request_id: int, prompt: list[int], params: SamplingParams) -> None:
    """Shorthand."""
    engine.submit(Submit(request_id, prompt, params))
