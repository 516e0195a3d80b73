"""One fine-tuning job in a process of its own, here or by PEFT, so that speed and memory can be compared.

``python -m headrace.evaluation.training_child own|peft ORDER.json`` prints one line of JSON.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.engine.llm import LLM
from headrace.engine.settings import EngineSettings
from headrace.engine.training_wire import StartTraining, TrainingCheckpoint, TrainingEnded, TrainingProgress
from headrace.models.catalog import OpenModel, find_model, open_model
from headrace.models.weights import dequantise
from headrace.training.dataset_file import Dataset, Sample, open_dataset
from headrace.training.settings import TrainingSettings

POOL_MIB = 640
PEFT_FOLDER = "peft"  # of its adapter, in the folder of an order
_PLACES = {
    "attention.norm": "input_layernorm", "attention.q": "self_attn.q_proj", "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj", "attention.o": "self_attn.o_proj", "mlp.norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj",
}  # fmt: skip


class Order(msgspec.Struct, frozen=True):
    """What to train: files of :mod:`headrace.training.dataset_file`, and a folder for checkpoints."""

    model: str
    threads: int
    data: str
    held: str
    folder: str
    settings: TrainingSettings


@dataclass(slots=True)
class Report:
    """``tokens_per_second`` without the first step; ``held``: the mean loss on the held-out file; ``peak_bytes``: of the process;
    ``losses`` of the steps."""

    tokens_per_second: float = 0.0
    held: float = 0.0
    peak_bytes: int = 0
    losses: list[float] = field(default_factory=list)


def own(order: Order) -> Report:
    """By this engine, which could serve meanwhile."""
    report, steps = Report(), list[tuple[float, int]]()
    with LLM(settings=EngineSettings(model=order.model, threads=order.threads, pool_mib=POOL_MIB)) as llm:
        for event in llm.train(StartTraining("job", order.settings, order.data, order.folder, order.held)):
            match event:
                case TrainingProgress():
                    steps.append((time.perf_counter(), event.tokens))
                    report.losses.append(event.loss)
                case TrainingCheckpoint():
                    report.held = event.validation_loss or 0.0
                case TrainingEnded():
                    if event.status != "succeeded":
                        raise RuntimeError(event.error)
    report.tokens_per_second = _speed(steps)
    return report


def by_peft(order: Order) -> Report:
    """By PEFT on transformers in fp32, on the same values of the weights, batches and learning rates."""
    import torch
    from peft import LoraConfig, get_peft_model

    settings = order.settings
    torch.set_num_threads(order.threads)
    torch.manual_seed(settings.seed)
    opened = open_model(find_model(order.model))
    targets = [_PLACES[f"{'attention' if name in 'qkvo' else 'mlp'}.{name}"].rpartition(".")[2] for name in settings.targets]
    config = LoraConfig(r=settings.rank, lora_alpha=int(settings.alpha), target_modules=targets, task_type="CAUSAL_LM")
    model: Any = get_peft_model(_transformers_model(opened), config)
    data = open_dataset(Path(order.data), opened.config.vocab)
    leaves = [one for one in model.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(leaves, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    every = -(-len(data) // settings.batch)
    report, tokens, ends = Report(), 0, list[tuple[float, int]]()
    model.train()
    for step in range(settings.epochs * every):
        samples = list(_batch(data, settings, step, every))
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate_at(step, settings.epochs * every)
        optimiser.zero_grad()
        loss = _loss(model, samples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, settings.clip)
        optimiser.step()
        report.losses.append(loss.item())
        tokens += sum(len(one.tokens) for one in samples)
        ends.append((time.perf_counter(), tokens))
    model.save_pretrained(str(Path(order.folder) / PEFT_FOLDER), save_embedding_layers=False)
    report.held = _held(model, open_dataset(Path(order.held), opened.config.vocab), settings.batch)
    report.tokens_per_second = _speed(ends)
    return report


def _speed(ends: list[tuple[float, int]]) -> float:
    """From the ends of steps and the tokens until then."""
    return (ends[-1][1] - ends[0][1]) / (ends[-1][0] - ends[0][0])


def _batch(data: Dataset, settings: TrainingSettings, step: int, every: int) -> Iterator[Sample]:
    """The samples that our own job learns from in that step (see :class:`headrace.training.order.SampleOrder`)."""
    epoch, place = divmod(step, every)
    drawn = np.random.Generator(np.random.PCG64([settings.seed, epoch])).permutation(len(data))
    for number in drawn[place * settings.batch : (place + 1) * settings.batch]:
        yield from data.sequences_of(int(number))


def _transformers_model(opened: OpenModel) -> Any:
    """The served values as transformers' Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = opened.config
    if config.family != "llama" or not config.tied_head:
        raise RuntimeError(f"the comparison knows Llamas with a tied head, not {config.family}")
    attention, mlp = config.attention_blocks[0], next(block for block in config.blocks if block not in config.attention_blocks)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab, hidden_size=config.hidden, intermediate_size=getattr(mlp, "inner"),  # noqa: B009
            num_hidden_layers=config.layers, num_attention_heads=attention.heads, num_key_value_heads=attention.kv_heads,
            head_dim=attention.head_dim, rms_norm_eps=config.norm_eps, tie_word_embeddings=True, use_cache=False,
            max_position_embeddings=config.context_length,
            rope_parameters={"rope_type": "default", "rope_theta": attention.rope_theta},
        )
    )  # fmt: skip
    values = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "final_norm", "lm_head.weight": "embedding"}
    for layer in range(config.layers):
        values |= {f"model.layers.{layer}.{theirs}.weight": f"layer.{layer}.{name}" for name, theirs in _PLACES.items()}
    made.load_state_dict({name: torch.from_numpy(dequantise(opened.weights.tensor(known))) for name, known in values.items()})
    return made


def _loss(model: Any, samples: list[Sample]) -> Any:
    """Mean over the learnt tokens of a padded batch, as transformers computes it."""
    import torch

    longest = max(len(one.tokens) for one in samples)
    ids, mask, labels = (np.full((len(samples), longest), fill, np.int64) for fill in (0, 0, -100))
    for row, one in enumerate(samples):
        count = len(one.tokens)
        ids[row, :count], mask[row, :count] = one.tokens, 1
        labels[row, :count] = np.where(one.weights > 0, one.tokens, -100)
    return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), labels=torch.from_numpy(labels)).loss


def _held(model: Any, data: Dataset, batch: int) -> float:
    import torch

    model.eval()
    total = weight = 0.0
    with torch.no_grad():
        for first in range(0, len(data), batch):
            samples = [one for number in range(first, min(first + batch, len(data))) for one in data.sequences_of(number)]
            learnt = sum(float((one.weights[1:] > 0).sum()) for one in samples)
            total += learnt * _loss(model, samples).item()
            weight += learnt
    return total / weight


def main(which: str, path: str) -> None:
    """Run an order and print its report."""
    order = msgspec.json.decode(Path(path).read_bytes(), type=Order)
    sides: dict[str, Callable[[Order], Report]] = {"own": own, "peft": by_peft}
    report = sides[which](order)
    report.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
