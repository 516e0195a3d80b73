"""What reading the weights once for serving and training could win at most: a bound, from the times of reading and of training."""

from __future__ import annotations

import time

import numpy as np

from headrace.engine.machine import usable_cores
from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.experiments._flexllm_pack import text_pack
from headrace.kernels._native import ThreadPool, time_reads
from headrace.training.backbone import Backbone
from headrace.training.crew import Crew, single_threaded_products
from headrace.training.frozen import PackedProduct
from headrace.training.parameters import Parameters
from headrace.training.passes import Passes, Room
from headrace.training.settings import TrainingSettings
from headrace.training.units import PART_ROWS

_ROUNDS = 3


def fusion(conditions: Conditions, backbone: Backbone, ids: list[int]) -> Claim:
    """A pack of one unit's rows, forwards and backwards, reads the blocks twice. Were both readings free, it would take so much
    less: what layer-visit fusion can give at most, before anything that it costs."""
    conditions.report("fusion", 0, 1)
    threads = conditions.threads or usable_cores()
    blocks = [one for block in backbone.blocks for name in ("qkv", "o", "gate_up", "down") if (one := getattr(block, name, None))]
    pool, matrices = ThreadPool(threads), [one.matrix for one in blocks if isinstance(one, PackedProduct)]
    reading = min(time_reads(matrices, pool, 1) for _ in range(_ROUNDS))
    rows = PART_ROWS * threads
    training = _pass_seconds(backbone, ids[:rows], Crew(threads))
    note = f"{1e3 * training:.0f} ms for {rows} rows both ways, of which reading the weights twice takes {2e3 * reading:.1f}"
    what = "most that layer-visit fusion could speed training up, were all of its readings of weights free"
    return Claim("fusion", what, ">=", 1.15, training / (training - 2 * reading), "x", note)


def _pass_seconds(backbone: Backbone, ids: list[int], crew: Crew) -> float:
    """Seconds of blocks alone, both ways."""
    settings = TrainingSettings(rank=8, max_tokens=max(8, len(ids)))
    passes = Passes(backbone, Parameters(backbone.config, settings), crew, Room(len(ids)))
    pack, best = text_pack(ids, len(ids)), float("inf")
    factors = np.full(len(pack.loss_rows), 1.0 / len(pack.loss_rows))
    with single_threaded_products():
        for _ in range(_ROUNDS):
            seconds = 0.0
            for units in (passes.forward(pack), passes.backward(pack, factors, np.zeros(len(pack.loss_rows)))):
                for unit in units:
                    began = time.perf_counter()
                    unit.run()
                    seconds += time.perf_counter() - began if unit.kind not in ("head", "loss") else 0.0
            best = min(best, seconds)
    crew.close()
    return best
