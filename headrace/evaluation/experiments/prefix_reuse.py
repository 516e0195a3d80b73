"""Prefix reuse: conversations on a third of the pages they need, with a disk below the index, against computing every prompt."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, Series
from headrace.evaluation.experiments._prefix_reuse_runs import Run, Talks, after_kill, converse
from headrace.evaluation.trials import Bench
from headrace.memory.page_pool import PagePool
from headrace.memory.prefix_index import PrefixIndex
from headrace.models.packages import cache_dir

_CACHED_TOKENS = 1_000_000
_PROMPT = 2048


def run(conditions: Conditions) -> Findings:
    """All measurements on one loaded model; what it keeps lies in a folder of its own, which goes at the end."""
    talks = Talks(6) if conditions.quick else Talks(64)
    with Bench(conditions) as bench, tempfile.TemporaryDirectory(prefix="experiment-", dir=cache_dir()) as name:
        layout = bench.built.chain.page_layout
        claims = _index(layout.tokens, layout.page_bytes, conditions.seed)
        found = converse(bench, talks, Path(name) / "talks", conditions)
        claims += _talks(found)
        few = Talks(4, turns=1, opening=320)
        same, tokens = after_kill(bench, few, Path(name) / "killed", conditions)
        claims += [
            Claim("kill", "tokens and logprobs after an engine was killed while it kept pages", "==", 100, 100 * same / few.count,
                  "% same bits", ""),
            Claim("kill_found", "prompt tokens found on the disk after that", ">=", 1, tokens, "tokens", ""),
        ]  # fmt: skip
    turns = tuple(float(turn) for turn in range(1, talks.turns + 1))
    series = tuple(
        Series(label, "turn", "seconds to the first token", turns, tuple(map(statistics.median, seconds)))
        for label, seconds in (("reused", found.reused), ("computed", found.computed))
    )
    return Findings(tuple(claims), series)


def _talks(found: Run) -> list[Claim]:
    reused, computed = statistics.median(found.reused[-1]), statistics.median(found.computed[-1])
    again = 100 * found.again / found.prompt_tokens
    note = f"{found.hits} requests got pages from the disk, which was given {found.written_pages}"
    return [
        Claim("first", "time to the first token of turn 8, reused / computed", "<=", 0.3, reused / computed, "",
              f"{1e3 * reused:.0f} and {1e3 * computed:.0f} ms; pool for a third of the conversations"),
        Claim("again", "prompt tokens computed though they had been computed before", "<=", 5.0, again, "% of prompt tokens", note),
        Claim("exact", "tokens and logprobs with reuse, disk and a restart at half time, as computed", "==", 100,
              100 * found.same / found.asked, "% same bits", f"{found.asked} answers"),
        Claim("restart", "prompt tokens found by the first turn after the restart", ">=", 1, found.after_restart, "tokens", ""),
    ]  # fmt: skip


def _index(page_tokens: int, page_bytes: int, seed: int) -> list[Claim]:
    """The index beside a million cached tokens of prompts that have nothing in common."""
    rng = random.Random(seed)
    held, count = _CACHED_TOKENS // page_tokens, _PROMPT // page_tokens
    pool = PagePool(held + 2 * count, page_tokens)
    index = PrefixIndex(pool)
    some, entering, finding = [], [], []
    for number in range(held // count + 64):
        prompt = [rng.randrange(49_000) for _ in range(_PROMPT)]
        table = pool.allocate(count) or []
        began = time.perf_counter()
        known = index.find("", prompt, count)
        index.add("", prompt, table, len(known), count)
        entering.append(time.perf_counter() - began)
        pool.release(table)
        if number % 8 == 7:
            some.append(prompt)
    for prompt in some[-40:]:
        began = time.perf_counter()
        index.find("", prompt, count)
        finding.append(time.perf_counter() - began)
    runs = {id(one): one for one in index.known if one is not None}.values()
    size = sys.getsizeof(index.known) + sum(
        sys.getsizeof(part) for one in runs for part in (one, one.pages, one.tokens, one.children)
    )
    size += sum(sys.getsizeof(0) * len(one.pages) for one in runs)
    cached = sum(len(one.pages) for one in runs)
    asked = f"prompt of {_PROMPT} tokens beside {cached * page_tokens:,} cached ones"
    return [
        Claim("find", f"looking up a known {asked}", "<=", 50, 1e6 * statistics.median(finding), "µs", ""),
        Claim("enter", f"looking up and entering a new {asked}", "<=", 50, 1e6 * statistics.median(entering[-64:]), "µs", ""),
        Claim("memory", "memory of the index / the pages it indexes", "<=", 2.0, 100 * size / (cached * page_bytes), "%", ""),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    name="prefix_reuse",
    title="What was said before is not computed again: not with too few pages, not after a restart.",
    source="SGLang: Efficient Execution of Structured Language Model Programs (RadixAttention)",
    minutes=5,
    run=run,
)
