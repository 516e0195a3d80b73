"""Integer products, whole requests with coded keys and values, and the protective range: exact, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from headrace.evaluation.exactness import (
    UNLIMITED,
    ExactLoad,
    budget_label,
    budgeted,
    greedy_requests,
    mixed_requests,
    on_scarce_pages,
    on_threads,
    shuffled,
)
from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.integer_products import CASES, extreme_rows, mismatches
from headrace.evaluation.trials import Bench, Trace, run_all
from headrace.kernels import _native
from headrace.kernels.formats import runnable_instruction_sets
from headrace.quantization.protective_range import LARGEST_INTEGER, protective_bound, stays_inside

# (outputs, inputs) of the matrices of the two packaged models: attention in and out, MLP in and out
_SHAPES = (
    (960, 576), (576, 576), (3072, 576), (576, 1536),
    (1536, 640), (640, 1024), (4096, 640), (640, 2048),
)  # fmt: skip
_QUICK_SHAPES = ((48, 576), (48, 640), (48, 1536))
_ROWS = (1, 3, 4, 15, 16, 17, 64, 257)
_BATCH = 16
_CHUNKS = (16, 64, UNLIMITED)


def integer_products(conditions: Conditions) -> list[Claim]:
    """Products of extreme codes on every instruction set, row count and thread count, against sums taken in numpy."""
    rng = np.random.default_rng(conditions.seed)
    pools = (_native.ThreadPool(1), _native.ThreadPool(2))
    shapes, isas, before = _QUICK_SHAPES if conditions.quick else _SHAPES, runnable_instruction_sets(), _native.isa()
    claims = []
    try:
        for number, (name, (what, make)) in enumerate(CASES.items()):
            conditions.report("integer products", number, len(CASES))
            wrong = seen = 0
            for outputs, inputs in shapes:
                case = make(outputs, inputs, rng)
                x = extreme_rows(max(_ROWS), inputs, case.peak, rng)
                for isa in isas:
                    _native.set_isa(isa)
                    found = mismatches(case, x, _ROWS if isa != "portable" or conditions.quick else _ROWS[:-1], pools)
                    wrong, seen = wrong + found[0], seen + found[1]
            note = f"{seen / 1e6:.1f} million values: {', '.join(isas)}; 1 to {max(_ROWS)} rows; 1 and 2 threads"
            claims.append(Claim(f"products_{name}", f"products of {what} that differ from the reference", "==", 0, wrong, "", note))
    finally:
        _native.set_isa(before)
    return claims


def same_requests(conditions: Conditions, kv: str) -> list[Claim]:
    """Requests of every kind with keys and values in that form: alone, and in every other way, tokens and log-probabilities."""
    claims = []
    with Bench(conditions, kv) as bench:
        submits = mixed_requests(bench, _BATCH, 90 if conditions.quick else 400, conditions.seed)
        alone: dict[tuple[int, int], Trace] = {}
        for number, submit in enumerate(submits):
            conditions.report(f"{kv}: each request alone", number, len(submits))
            alone |= run_all(budgeted(bench, UNLIMITED), [submit])
        load = ExactLoad(submits, alone)
        ways = _ways(bench, load)
        for number, (claim_id, what, way) in enumerate(ways):
            conditions.report(f"{kv}: {what}", number, len(ways) + 1)
            claims.append(_same(f"{kv}_{claim_id}", f"{kv}: requests {what} as alone", way()))
        claims += _preempted(bench, conditions, kv)
    return claims


def _ways(bench: Bench, load: ExactLoad) -> list[tuple[str, str, Callable[[], float]]]:
    """(claim, what, percent of the same bits) of each way to run the load that must make no difference."""

    def cut(tokens: int) -> float:
        return load.same(run_all(budgeted(bench, tokens), load.submits))

    ways: list[tuple[str, str, Callable[[], float]]] = []
    for chunk in _CHUNKS:
        label = "whole" if chunk == UNLIMITED else f"in chunks of {chunk}"
        ways.append((f"chunks_{budget_label(chunk)}", f"in a batch of {_BATCH}, prompts {label},", partial(cut, chunk)))
    ways.append(("order", "in random order", lambda: load.same(shuffled(bench, load.submits, 1))))
    for threads in (1, 2):
        ways.append((f"threads_{threads}", f"on {threads} thread{'s' * (threads > 1)}", partial(on_threads, bench, load, threads)))
    return ways


def _preempted(bench: Bench, conditions: Conditions, kv: str) -> list[Claim]:
    """Long greedy answers on a pool for little more than one of them: computed again, or swapped to disk and back."""
    outputs = (40, 56) if conditions.quick else (100, 160)
    submits = greedy_requests(bench, range(10, 10 + 2 * _BATCH, 2), outputs, conditions.seed)
    alone: dict[tuple[int, int], Trace] = {}
    for number, submit in enumerate(submits):
        conditions.report(f"{kv}: each long answer alone", number, len(submits))
        alone |= run_all(budgeted(bench, UNLIMITED), [submit])
    load = ExactLoad(submits, alone)
    conditions.report(f"{kv}: preempted", 0, 1)
    again = on_scarce_pages(bench, load)
    with TemporaryDirectory(prefix="headrace-") as folder:
        swapped = on_scarce_pages(bench, load, Path(folder))
    return [
        _same(f"{kv}_recomputed", f"{kv}: requests preempted and computed again as alone", again[0], f"{again[1]} preemptions"),
        _same(f"{kv}_swapped", f"{kv}: requests swapped out and in as alone", swapped[0], f"{swapped[2]} pages written"),
        Claim(f"{kv}_preemptions", f"{kv}: preemptions when computed again", ">=", 1, again[1], ""),
        Claim(f"{kv}_swaps", f"{kv}: pages written when swapped", ">=", 1, swapped[2], "pages"),
    ]


def _same(claim_id: str, what: str, share: float, note: str = "") -> Claim:
    return Claim(claim_id, what, "==", 100, share, "% same bits", note)


def protective_range(conditions: Conditions) -> list[Claim]:
    """Every span of integers that a group can have: the bound that keeps all of them in int8, and that 127 would not."""
    conditions.report("protective range", 0, 1)
    bound = protective_bound("postscale")
    wider = [limit for limit in range(bound + 1, LARGEST_INTEGER + 1) if stays_inside(limit, "postscale")]
    what = f"all (minimum, maximum) of a group within ±{bound} stay in int8 after two-level rounding"
    note = f"found by enumeration; ±{protective_bound('prescale')} where a zero is itself a code"
    return [
        Claim("range_inside", what, "==", 1, float(stays_inside(bound, "postscale")), "", note),
        Claim("range_127", "spans within ±127 do too (they must not)", "==", 0, float(stays_inside(LARGEST_INTEGER, "postscale"))),
        Claim("range_largest", "larger bounds that would do", "==", 0, len(wider)),
    ]
