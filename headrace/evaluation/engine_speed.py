"""Speed of the engine without HTTP: one stream, batches and prompts, beside what this machine's memory allows."""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.engine.build import BuiltEngine
from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.errors import HeadraceError
from headrace.evaluation.workload import passage
from headrace.settings.declaration import option, validate
from headrace.text.open_tokenizer import open_tokenizer

_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """What to measure."""

    batches: tuple[int, ...] = option((1, 8, 32), unit="streams", minimum=1, maximum=1024, help="Streams that generate together.")
    prompts: tuple[int, ...] = option((32, 512, 2048), unit="tokens", minimum=1, maximum=100_000, help="Lengths of single prompts.")
    context: int = option(128, unit="tokens", minimum=1, maximum=100_000, help="Prompt of each generating stream.")
    tokens: int = option(64, unit="tokens", minimum=2, maximum=100_000, help="Tokens that each stream generates.")
    rounds: int = option(3, minimum=1, maximum=100, help="Runs of each measurement, in turns.")

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True)
class Speed:
    """One measurement over all rounds: tokens/s (median, lowest, highest), GB/s read, and the share of steps that is not the model.

    ``bytes_per_second`` counts the weights once a step and the keys and values that attention reads.
    """

    what: str
    rows: int
    median: float
    lowest: float
    highest: float
    bytes_per_second: float
    overhead: float


@dataclass(frozen=True, slots=True)
class _Run:
    tokens_per_second: float
    bytes_per_second: float
    overhead: float


class SpeedTest:
    """Measures one built engine. ``report`` is told (what, done, in all)."""

    def __init__(self, built: BuiltEngine, settings: SpeedSettings, report: Callable[[str, int, int], None]) -> None:
        self._built = built
        self._settings = settings
        self._report = report
        self._tokenizer = open_tokenizer(built.model.tokenizer_source)
        self._rng = random.Random(0)
        self._next_id = 1
        config = built.model.config
        self._weight_bytes = streamed_bytes(built)
        self._kv_bytes = sum(2 * spec.kv_heads * spec.head_dim * _BF16_BYTES for spec in config.attention_blocks)
        longest = max(*settings.prompts, settings.context + settings.tokens)
        if longest > built.engine.limits.context_length:
            limit = built.engine.limits.context_length
            raise HeadraceError("invalid_setting", f"{longest} tokens don't fit the context of {limit}", param="prompts")

    def run(self) -> list[Speed]:
        """All measurements, in turns, one warm-up before."""
        self._prompt(16)
        variants: list[tuple[str, int, Callable[[], _Run]]] = []
        for streams in self._settings.batches:
            what = f"{streams} streams" if streams > 1 else "one stream"
            variants.append((what, streams, functools.partial(self._decode, streams)))
        for length in self._settings.prompts:
            variants.append((f"prompt of {length}", length, functools.partial(self._prompt, length)))
        runs: list[list[_Run]] = [[] for _ in variants]
        for number in range(self._settings.rounds):
            for index, (_, _, measure) in enumerate(variants):
                self._report("measuring", number * len(variants) + index, self._settings.rounds * len(variants))
                runs[index].append(measure())
        return [_speed(what, rows, found) for (what, rows, _), found in zip(variants, runs, strict=True)]

    def _decode(self, streams: int) -> _Run:
        """Tokens/s while all streams generate: steps that still read prompts are left out."""
        engine, settings = self._built.engine, self._settings
        params = SamplingParams(max_tokens=settings.tokens, temperature=0.0, ignore_eos=True)
        generated = {self._submit(settings.context, params): 0 for _ in range(streams)}
        while not all(generated.values()):
            _count(engine, generated)
        before, began, moved, done = engine.gauges(), time.perf_counter(), 0, sum(generated.values())
        while engine.live == streams:
            moved += self._weight_bytes + (streams * settings.context + sum(generated.values())) * self._kv_bytes
            _count(engine, generated)
        seconds, after = time.perf_counter() - began, engine.gauges()
        self._finish()
        tokens = sum(generated.values()) - done
        return _Run(tokens / seconds, moved / seconds, (after.overhead_seconds - before.overhead_seconds) / seconds)

    def _prompt(self, length: int) -> _Run:
        engine = self._built.engine
        before = engine.gauges()
        self._submit(length, SamplingParams(max_tokens=1, temperature=0.0))
        began = time.perf_counter()
        self._finish()
        seconds, after = time.perf_counter() - began, engine.gauges()
        moved = (after.steps - before.steps) * self._weight_bytes
        return _Run(length / seconds, moved / seconds, (after.overhead_seconds - before.overhead_seconds) / seconds)

    def _submit(self, length: int, params: SamplingParams) -> int:
        self._next_id += 1
        tokens = self._tokenizer.encode(passage(length, self._rng))[:length]
        self._built.engine.submit(Submit(self._next_id, tokens, params))
        return self._next_id

    def _finish(self) -> None:
        while self._built.engine.has_work:
            self._built.engine.step()


def _count(engine: Engine, generated: dict[int, int]) -> None:
    """One step; its tokens go to their requests."""
    outputs = engine.step()
    for output in outputs.outputs if outputs is not None else ():
        generated[output.request_id] += len(output.tokens)


def streamed_bytes(built: BuiltEngine) -> int:
    """Bytes of weights that one step reads: all of them, without an embedding table that is not also the head."""
    weights = built.model.weights
    return weights.size_bytes - (0 if built.model.config.tied_head else weights.tensor("embedding").data.size)


def _speed(what: str, rows: int, runs: Sequence[_Run]) -> Speed:
    rates = [run.tokens_per_second for run in runs]
    moved = statistics.median(run.bytes_per_second for run in runs)
    overhead = statistics.median(run.overhead for run in runs)
    return Speed(what, rows, statistics.median(rates), min(rates), max(rates), moved, overhead)
