"""Trained adapters against merged weights in fp32, and the same bits whoever else is served and whatever happened before."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import AdapterUse, Submit
from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.experiments._s_lora_setup import mixed_shapes, register, write_random
from headrace.evaluation.quality import Quality, Text, compare_many
from headrace.evaluation.rounded_weights import plain
from headrace.evaluation.trained_adapters import TrainedAdapter
from headrace.evaluation.trials import Bench, Key, SwapVariant, Trace, run_all
from headrace.kernels.adapter_layout import lay_out
from headrace.kernels.adapter_pages import place_adapter
from headrace.kernels.interface import Bytes, ChainRunner, Float32, Int32, StepAdapters, StepBatch
from headrace.kernels.native_chain import NativeChain
from headrace.models.adapter import Adapter
from headrace.models.adapter_file import read_adapter
from headrace.models.catalog import OpenModel
from headrace.models.merged_weights import MergedWeights
from headrace.scheduling.settings import SchedulingSettings
from headrace.text.open_tokenizer import open_tokenizer

KL = 0.01
"""The bound that the base model keeps against its own weights in fp32, in nats."""

_WINDOW = 128
_KV_PAGES = 16


class Adapted:
    """A chain whose every row uses one adapter (a ChainRunner). It has pages of its own: those of its callers stay unused."""

    def __init__(self, chain: NativeChain, adapter: Adapter) -> None:
        self._chain = chain
        self.config, self.page_layout = chain.config, chain.page_layout
        size = lay_out(chain.config, adapter.ranks, chain.page_layout.page_bytes).pages
        self._pool: Bytes = np.zeros((_KV_PAGES + size, chain.page_layout.page_bytes), np.uint8)
        pages = np.arange(_KV_PAGES, _KV_PAGES + size, dtype=np.int32)
        self._placed = place_adapter(adapter, chain.config, self._pool, pages)

    def forward(self, batch: StepBatch, pool: Bytes) -> None:
        """One slice, at most 256 positions."""
        assert len(pool) <= _KV_PAGES, "windows are short"
        assert len(batch.slice_starts) == 2, "one window at a time"
        one: Int32 = np.array([0, 1], np.int32)
        own = StepAdapters(one, one[:1], np.ones(1, np.float32), (self._placed,))
        self._chain.forward(replace(batch, adapters=own), self._pool)

    def hidden(self) -> Float32:
        """See :class:`~headrace.kernels.interface.ChainRunner`."""
        return self._chain.hidden()

    def logits(self, first: int, count: int) -> Float32:
        """See :class:`~headrace.kernels.interface.ChainRunner`."""
        return self._chain.logits(first, count)

    def greedy(self, first: int, count: int) -> Int32:
        """See :class:`~headrace.kernels.interface.ChainRunner`."""
        return self._chain.greedy(first, count)


def merged_claims(conditions: Conditions, model: OpenModel, trained: Sequence[TrainedAdapter]) -> list[Claim]:
    """KL of each trained adapter, served unmerged, from the merged model in fp32; and that each has learnt its text."""
    tokenizer = open_tokenizer(model.tokenizer_source)
    first = tokenizer.bos_id if tokenizer.add_bos else None
    threads = conditions.threads or 2
    chain, base = (NativeChain(model.config, weights, threads) for weights in (model.weights, plain(model.weights)))
    worst, worst_base, learnt = 0.0, 0.0, []
    for done, one in enumerate(trained):
        conditions.report("adapters against merged weights", done, len(trained))
        windows = np.asarray(one.unseen, np.int32).reshape(-1, _WINDOW)
        text = Text(windows[:1] if conditions.quick else windows, first)
        adapter = read_adapter(one.folder, model.config)
        merged = NativeChain(model.config, plain(MergedWeights(model.weights, [(adapter, 1.0)])), threads)
        found = _compare(merged, Adapted(chain, adapter), text)
        own = _compare(base, chain, text)
        worst, worst_base = max(worst, found.mean_kl), max(worst_base, own.mean_kl)
        learnt.append(found.reference_perplexity / own.reference_perplexity)
    count = f"of {len(trained)} trained on {len({one.recipe.source for one in trained})} modules of Python's library"
    note = f"ranks {', '.join(map(str, sorted({one.recipe.rank for one in trained})))}"
    return [
        Claim("kl", f"mean KL from merged fp32 weights, the worst {count}", "<=", KL, worst, "nats",
              f"{note}; the base alone {worst_base:.2g}"),
        Claim("learnt", f"perplexity of text that it has not seen over the base's, the worst {count}", "<=", 0.98, max(learnt), "x",
              f"the best {min(learnt):.2f}"),
    ]  # fmt: skip


def _compare(reference: ChainRunner, candidate: ChainRunner, text: Text) -> Quality:
    return compare_many(reference, {"": candidate}, text)[""]


def bit_claims(bench: Bench, conditions: Conditions, trained: Sequence[TrainedAdapter], folder: Path) -> list[Claim]:
    """32 requests over as many adapters, and some over none or two: alone, together, with adapters read again, with preemptions."""
    config = bench.built.model.config
    folders = [one.folder for one in trained]
    folders += write_random(config, folder / "bits", mixed_shapes(32 - len(folders)), conditions.seed)
    submits = _requests(bench, 36, 8 if conditions.quick else 24, conditions.seed)
    engine = _engine(bench)
    _register(engine, folders)
    alone: dict[Key, Trace] = {}
    for done, one in enumerate(submits):
        conditions.report("adapters alone", done, len(submits))
        alone |= run_all(engine, [one])
    conditions.report("adapters together", 0, 3)
    found = run_all(engine, submits)
    claims = [_same("together", "beside 31 other adapters", alone, found, "")]
    conditions.report("adapters together", 1, 3)
    claims.append(_scarce(bench, folders, submits, alone))
    conditions.report("adapters together", 2, 3)
    claims.append(_swapped(bench, folders, submits, alone))
    distinct = len({tuple(trace.tokens) + tuple(one.logprob for one in trace.logprobs) for trace in alone.values()})
    claims.append(Claim("distinct", "requests whose outcome is their own", "==", len(submits), distinct, "requests"))
    return claims


def _engine(bench: Bench, pages: int | None = None, swap: SwapVariant | None = None) -> Engine:
    return bench.engine(SchedulingSettings(step_tokens=96, gap_target_ms=60_000, prefix_reuse="off"), pages, swap)


def _register(engine: Engine, folders: Sequence[Path]) -> None:
    """Requests name generations, which count from 1 in every engine."""
    found = register(engine, folders)
    assert found == list(range(1, len(folders) + 1)), "generations count from 1"


def _requests(bench: Bench, count: int, output: int, seed: int) -> list[Submit]:
    """One for each of 32 adapters, two without any and two with the sum of two."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        uses = (
            [AdapterUse(index + 1)] if index < 32 else [AdapterUse(index - 30), AdapterUse(index - 20, -0.5)] if index < 34 else []
        )
        params = SamplingParams(max_tokens=output, temperature=0.0, top_logprobs=1, ignore_eos=True)
        made.append(Submit(index, bench.prompt(rng.randrange(8, 60), rng), params, adapters=uses))
    return made


def _same(name: str, where: str, alone: Mapping[Key, Trace], found: Mapping[Key, Trace], note: str) -> Claim:
    same = sum(found.get(key) == trace for key, trace in alone.items())
    what = f"tokens and logprobs {where}, as alone"
    return Claim(name, what, "==", 100, 100 * same / len(alone), "% same bits", note)


def _scarce(bench: Bench, folders: Sequence[Path], submits: Sequence[Submit], alone: Mapping[Key, Trace]) -> Claim:
    """All twice, on a pool of a quarter of what adapters take: the second time they have been evicted and are read again."""
    engine = _engine(bench, _quarter(bench, folders))
    _register(engine, folders)
    assert engine.adapting is not None, "engines of a bench have adapters"
    run_all(engine, submits)
    again = run_all(engine, submits)
    gauges = engine.adapting.gauges()
    assert gauges is not None, "adapters were registered"
    note = f"{gauges.loads} times read, {gauges.evictions} evicted, pool a quarter of the adapters"
    engine.close()
    return _same("reloaded", "after eviction and reading again", alone, again, note)


def _swapped(bench: Bench, folders: Sequence[Path], submits: Sequence[Submit], alone: Mapping[Key, Trace]) -> Claim:
    """Every third request is set aside every few steps, its pages go to disk, its adapters may be evicted meanwhile."""
    engine = _engine(bench, 2 * _quarter(bench, folders), SwapVariant())
    _register(engine, folders)
    found: dict[Key, Trace] = {}
    for submit in submits:
        engine.submit(submit)
    steps = 0
    while engine.live:
        outputs = engine.step()
        steps += 1
        if steps % 5 == 0:
            for item in engine.scheduler.items[::3]:
                engine.scheduler.preempt(item)
        if outputs is None:
            engine.wait_compiled(0.01)
            continue
        for output in outputs.outputs:
            found.setdefault((output.request_id, output.choice), Trace()).take(output)
    gauges = engine.gauges()
    engine.close()
    moved = gauges.moves.written_pages if gauges.moves is not None else 0
    return _same(
        "preempted", "when requests are set aside and swapped", alone, found, f"{gauges.preemptions} preemptions, {moved} pages"
    )


def _quarter(bench: Bench, folders: Sequence[Path]) -> int:
    config, size = bench.built.model.config, bench.built.chain.page_layout.page_bytes
    sizes = [lay_out(config, read_adapter(folder, config).ranks, size).pages for folder in folders]
    return max(sum(sizes) // 4, 2 * max(sizes) + 16)
