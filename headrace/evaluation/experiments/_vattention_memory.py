"""What views and pages hold: a trace of requests, children of one prefix, a long random life, and a write that must fault."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.evaluation.exactness import greedy_requests
from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.trials import Bench
from headrace.memory.address_space import maps_in_use
from headrace.memory.arena import AHEAD_BYTES, Arena
from headrace.memory.view_ledger import NOWHERE
from headrace.memory.views import ViewPlan, Views
from headrace.scheduling.settings import SchedulingSettings

_WRITE_TO_ALIAS = """
from headrace.memory.arena import Arena
arena = Arena(2, 4096, 1, 2)
arena.bytes[1] = 7
arena.alias(2, 1, 1)
assert arena.rows[2, 0] == 7
arena.rows[2, 0] = 8
"""


def trace_claims(bench: Bench, conditions: Conditions) -> list[Claim]:
    """A trace of short and long requests on a pool of two full contexts."""
    count, longest = (60, 120) if conditions.quick else (200, 200)
    rng = random.Random(conditions.seed)
    lengths = [min(longest, round(rng.lognormvariate(3.7, 0.9)) + 1) for _ in range(count)]
    submits = greedy_requests(bench, lengths, (4, 8, 12), conditions.seed)
    layout, limits = bench.built.chain.page_layout, bench.built.engine.limits
    whole = -(-limits.context_length // layout.tokens)
    views = bench.views()
    engine = bench.engine(SchedulingSettings(prefix_reuse="off"), 2 * whole, views=views)
    held, needed, running = _run(engine, submits, layout.tokens, conditions)
    engine.close()
    taken = os.fstat(bench.built.arena.fileno()).st_blocks * 512 - AHEAD_BYTES
    reserving = 2 * whole // whole
    note = f"{held} pages, {held * bench.built.arena.page_bytes / 2**20:.0f} MiB; the system gave {taken / 2**20:.0f}, and 24 ahead"
    return [
        Claim("physical", "pages held at the peak / tokens computed, in whole pages", "<=", 1.10, held / needed, "x", note),
        Claim("concurrent", "requests at once / those of an engine that reserves the longest length", ">=", 4.0,
              running / reserving, "x", f"{running} and {reserving} on {2 * whole} pages"),
    ]  # fmt: skip


def _run(engine: Engine, submits: Sequence[Submit], page: int, conditions: Conditions) -> tuple[int, int, int]:
    """(pages held at their peak, pages that the tokens computed there fill, most requests at once)."""
    for submit in submits:
        engine.submit(submit)
    peak, needed, running = 0, 1, 0
    while engine.live:
        engine.step()
        held = engine.scheduler.pool.held
        running = max(running, engine.scheduler.running)
        if held > peak:
            peak, needed = held, sum(-(-choice.item.computed // page) for choice in engine._choices.values())
        conditions.report("a trace of requests", len(submits) - engine.live, len(submits))
    return peak, needed, running


def children_claims(bench: Bench, conditions: Conditions) -> list[Claim]:
    """Sixteen children of a prefix: pages together, and what each says beside what it says alone."""
    prefix, children = (256, 8) if conditions.quick else (1024, 16)
    rng = random.Random(conditions.seed)
    start = bench.prompt(prefix, rng)
    params = SamplingParams(max_tokens=12, temperature=0.0, top_logprobs=0, ignore_eos=True)
    submits = [Submit(child, [*start, *bench.prompt(5 + child, rng)], params) for child in range(children)]
    plain = bench.engine(SchedulingSettings(prefix_reuse="off"))
    alone = {submit.request_id: _tokens(plain, [submit])[0][submit.request_id] for submit in submits}
    engine = bench.engine(SchedulingSettings(), views=bench.views())
    _tokens(engine, [Submit(999, start, SamplingParams(max_tokens=1, temperature=0.0))])
    together, held = _tokens(engine, submits)
    gauges = engine.gauges().views
    assert gauges is not None
    engine.close()
    page = bench.built.chain.page_layout.tokens
    own = sum(-(-(len(one.prompt) + 12 - prefix) // page) for one in submits)
    same = sum(together[child] == tokens for child, tokens in alone.items())
    note = f"{gauges.shown_pages + gauges.kept_pages} pages shown in views, {gauges.ahead_pages} ahead"
    return [
        Claim("children", f"{children} children of a {prefix}-token prefix, tokens and logprobs as unshared", "==", 100,
              100 * same / children, "% same bits", note),
        Claim("shared", "pages of all / pages of one prefix and private tails", "<=", 1.1, held / (prefix // page + own), "x",
              f"{held} pages"),
    ]  # fmt: skip


def _tokens(engine: Engine, submits: Sequence[Submit]) -> tuple[dict[int, list[object]], int]:
    """(what each request got, pages held at their peak)."""
    got: dict[int, list[object]] = {}
    held = 0
    for submit in submits:
        engine.submit(submit)
    while engine.live:
        outputs = engine.step()
        held = max(held, engine.scheduler.pool.held)
        for output in outputs.outputs if outputs is not None else ():
            got.setdefault(output.request_id, []).append((output.tokens, output.logprobs, output.finish))
    return {key: [part for part in parts if part != ([], None, None)] for key, parts in got.items()}, held


def fault_claims() -> list[Claim]:
    """A process that writes through an alias must end there."""
    done = subprocess.run([sys.executable, "-c", _WRITE_TO_ALIAS], capture_output=True, timeout=60, check=False)
    return [Claim("frozen", "a write through an alias faults", "==", 1, float(done.returncode == -signal.SIGSEGV), "")]


def soak_claims(conditions: Conditions) -> list[Claim]:
    """Random births, growth, changes and deaths on real mappings."""
    operations = 8_000 if conditions.quick else 60_000
    rng = random.Random(conditions.seed)
    pages, plan = 300, ViewPlan(48, 64)
    wrong = over = 0
    files = len(os.listdir("/proc/self/fd"))
    with Arena(pages, 4096, 1, plan.rows) as arena:
        arena.bytes.view(np.uint32)[:, 0] = np.arange(pages)
        views, tables, before = Views(arena, plan), dict[int, list[int]](), maps_in_use()
        for number in range(operations):
            if len(tables) < 40 and rng.random() < 0.2:
                tables[number] = list(range(rng.randrange(9), 20)) if rng.random() < 0.3 else [rng.randrange(pages)]
            owner = rng.choice(list(tables)) if tables else None
            if owner is None:
                continue
            _change(tables[owner], pages, rng)
            first = views.place(tables, [(owner, tables[owner])])[0]
            seen = arena.rows[first : first + len(tables[owner]), :4].copy().view(np.uint32)[:, 0]
            wrong += first != NOWHERE and seen.tolist() != tables[owner]
            views.look_ahead((owner,))
            if rng.random() < 0.03 or len(tables[owner]) >= 60:
                del tables[owner]
            if number % 500 == 0:
                over = max(over, maps_in_use() - before - views.ledger.maps - 2 * plan.ranges)
                conditions.report("a long life", number, operations)
        views.close()
        left = maps_in_use() - before
    leaked = len(os.listdir("/proc/self/fd")) - files
    note = f"{operations:,} operations; {left} mappings and {leaked} files are left"
    return [
        Claim(
            "soak", "wrong views, and mappings beyond those counted, in a long random life", "==", 0, wrong + max(0, over), "", note
        )
    ]


def _change(table: list[int], pages: int, rng: random.Random) -> None:
    what = rng.random()
    if what < 0.8:
        table.append(min(pages - 1, table[-1] + 1) if rng.random() < 0.8 else rng.randrange(pages))
    elif what < 0.9:
        table[rng.randrange(len(table))] = rng.randrange(pages)
