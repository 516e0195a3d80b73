"""The same streams over the same adapters with PEFT, where it is installed: swapped between batches, and all in one batch."""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headrace.engine.machine import usable_cores
from headrace.evaluation.experiment import Claim, Conditions, interleave
from headrace.evaluation.experiments._s_lora_setup import ATTENTION, Streams, preload, register, write_random
from headrace.evaluation.statistics import median_ratio
from headrace.evaluation.trials import Bench
from headrace.models.catalog import find_model
from headrace.scheduling.settings import SchedulingSettings

_ADAPTERS = 16
_RANK = 16
_PROMPT = 24


def peft_claims(bench: Bench, conditions: Conditions, folder: Path) -> list[Claim]:
    """16 streams over 16 adapters: tokens/s here over those of PEFT on torch in fp32, in turns. Nothing where PEFT is missing."""
    path = find_model(conditions.model).path
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")) or path is None:
        conditions.report("no comparison: `pip install peft transformers` and the extra torch bring one", 0, 1)
        return []
    folders = write_random(bench.built.model.config, folder / "peft", [(_RANK, ATTENTION)] * _ADAPTERS, conditions.seed + 4000)
    output = 12 if conditions.quick else 32
    streams = Streams(bench, _PROMPT, output, conditions.seed)
    conditions.report("PEFT reads the model and its adapters", 0, 1)
    other = _Peft(path, folders, conditions.threads or usable_cores())
    rng = random.Random(conditions.seed)
    prompts = [bench.prompt(_PROMPT, rng) for _ in folders]
    variants: list[Callable[[], float]] = [
        partial(_ours, bench, streams, folders), partial(other.swapped, prompts, output), partial(other.mixed, prompts, output)
    ]  # fmt: skip
    ours, swapped, mixed = interleave(variants, 1 if conditions.quick else 3, partial(conditions.report, "beside PEFT"))
    note = f"{_ADAPTERS} streams, prompts of {_PROMPT}, {output} tokens each; PEFT {other.version}, fp32"
    return [
        Claim("peft_swap", "tokens/s of 16 streams over 16 adapters / PEFT, adapters swapped between batches", ">=", 4,
              median_ratio(ours, swapped), "x", note),
        Claim("peft_mixed", "the same / PEFT, all adapters in one batch", ">=", 4, median_ratio(ours, mixed), "x", note),
    ]  # fmt: skip


def _ours(bench: Bench, streams: Streams, folders: Sequence[Path]) -> float:
    """Generated tokens a second, prompts' time included, as it is for PEFT."""
    engine = bench.engine(SchedulingSettings(prefix_reuse="off"))
    generations = register(engine, folders)
    preload(engine, generations)
    window = streams.run(engine, generations)
    return window.generated / window.seconds


class _Peft:
    """The model in transformers with all adapters loaded."""

    def __init__(self, path: Path, folders: Sequence[Path], threads: int) -> None:
        import peft
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        self.version: str = peft.__version__
        self._torch: Any = torch
        torch.set_num_threads(threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        base: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        self._names = [f"adapter {number}" for number in range(len(folders))]
        model: Any = peft.PeftModel.from_pretrained(base, str(folders[0]), adapter_name=self._names[0])
        for name, folder in zip(self._names[1:], folders[1:], strict=True):
            model.load_adapter(str(folder), adapter_name=name)
        self._model = model.eval()

    def swapped(self, prompts: Sequence[list[int]], output: int) -> float:
        """One batch for each adapter, which is made the active one before."""
        began = time.perf_counter()
        for name, prompt in zip(self._names, prompts, strict=True):
            self._model.set_adapter(name)
            self._generate([prompt], output)
        return len(prompts) * output / (time.perf_counter() - began)

    def mixed(self, prompts: Sequence[list[int]], output: int) -> float:
        """One batch in which each row names its adapter."""
        began = time.perf_counter()
        self._generate(prompts, output, adapter_names=self._names)
        return len(prompts) * output / (time.perf_counter() - began)

    def _generate(self, prompts: Sequence[list[int]], output: int, **how: Any) -> None:
        ids = self._torch.tensor(list(prompts))
        with self._torch.no_grad():
            made = self._model.generate(
                input_ids=ids, attention_mask=self._torch.ones_like(ids), max_new_tokens=output, min_new_tokens=output,
                do_sample=False, pad_token_id=0, **how,
            )  # fmt: skip
        assert made.shape[1] == ids.shape[1] + output, "every row has all its tokens"
