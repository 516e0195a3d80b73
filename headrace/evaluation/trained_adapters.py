"""Really trained low-rank adapters, made here in some minutes: each on one module of Python's standard library, in plain torch.

Random numbers prove shapes; what training leaves has directions that matter, singular values that fall off and modules that were
hardly touched. Ranks and target sets are mixed as in the published workloads of "S-LoRA: Serving Thousands of Concurrent LoRA
Adapters" (ranks 8 to 64). They are kept in the cache folder as PEFT's files. Needs the ``torch`` extra when one has to be made.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import HeadraceError
from headrace.models.adapter import MODULES, Adapter, LowRank, module_sides, round_bf16
from headrace.models.adapter_config import ADAPTER_CONFIG
from headrace.models.adapter_file import write_adapter
from headrace.models.catalog import OpenModel
from headrace.models.config import AttentionSpec
from headrace.models.packages import cache_dir
from headrace.models.rope import inverse_frequencies
from headrace.models.weights import dequantise
from headrace.text.open_tokenizer import open_tokenizer

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from headrace.kernels.torch_adapters import Addition
    from headrace.kernels.torch_pages import PagedRows

Report = Callable[[str, int, int], None]

WINDOW = 64
STEPS = 32
HELD_OUT = 384
"""The last tokens of each text, which no adapter is trained on."""

_RATE = 1.5e-3  # of rank 8, at its height
_WARM = 4  # steps to get there
_ALPHA = 2.0  # alpha / rank
_FORMAT = 2  # another number makes all of them anew
_FEWEST_TOKENS = HELD_OUT + 2 * WINDOW
_SETS = (("q", "v"), ("q", "k", "v", "o"), MODULES, ("gate", "up", "down"))
_RANKS = (8, 16, 32, 64)
_SOURCES = (
    "argparse", "ast", "calendar", "csv", "difflib", "fractions", "heapq", "html.parser",
    "http.cookies", "ipaddress", "json.decoder", "statistics", "textwrap", "threading", "uuid", "zipfile",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter: the module of the standard library whose source it learns, its rank and what it changes."""

    source: str
    rank: int
    modules: tuple[str, ...]

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.source}-r{self.rank}-{''.join(name[0] for name in self.modules)}"

    def text(self) -> str:
        """Source and docstrings of the module, as this Python has them."""
        found = importlib.util.find_spec(self.source)
        if found is None or found.origin is None:
            raise HeadraceError("unsupported_machine", f"this Python has no source of {self.source} to train an adapter on")
        return Path(found.origin).read_text(encoding="utf-8")


# Each rank meets each target set once.
RECIPES = tuple(
    Recipe(source, _RANKS[index % 4], _SETS[(index + index // 4) % 4]) for index, source in enumerate(_SOURCES)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A folder with an adapter, the ``recipe`` that it was made by, and tokens of its text that it has not seen."""

    folder: Path
    recipe: Recipe
    unseen: list[int]


def trained_adapters(model: OpenModel, count: int, report: Report) -> list[TrainedAdapter]:
    """The first ``count`` of :data:`RECIPES` for a model, from the cache folder; what is missing is trained now.

    The same numbers on every run on one machine: seeds are fixed. A change of the model's weights, of the recipe or of Python's
    text makes an adapter anew. ``report`` gets steps done and in all.
    """
    tokenizer = open_tokenizer(model.tokenizer_source)
    recipes = RECIPES[:count]
    texts = [tokenizer.encode(recipe.text()) for recipe in recipes]
    folders = [_folder(model, recipe, text) for recipe, text in zip(recipes, texts, strict=True)]
    missing = [index for index, folder in enumerate(folders) if not (folder / ADAPTER_CONFIG).exists()]
    if missing:
        _train(model, [(recipes[index], texts[index][:-HELD_OUT], folders[index]) for index in missing], report)
    return [TrainedAdapter(folder, recipe, text[-HELD_OUT:]) for folder, recipe, text in zip(folders, recipes, texts, strict=True)]


def _train(model: OpenModel, wanted: Sequence[tuple[Recipe, Sequence[int], Path]], report: Report) -> None:
    """On one thread: sums of several would depend on how many there are, and wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = _Trainer(model)
        for number, (recipe, text, folder) in enumerate(wanted):
            write_adapter(folder, trainer.train(recipe, text, partial(_note, report, number * STEPS, len(wanted) * STEPS)))
    finally:
        torch.set_num_threads(before)


def _note(report: Report, began: int, every: int, step: int) -> None:
    report("training adapters", began + step, every)


def _folder(model: OpenModel, recipe: Recipe, text: Sequence[int]) -> Path:
    assert len(text) >= _FEWEST_TOKENS, f"the text of {recipe.source} is too short"
    embedding = model.weights.tensor("embedding").data
    identity = repr((_FORMAT, model.config, recipe, STEPS, WINDOW, _RATE, _ALPHA, list(text))).encode()
    digest = hashlib.sha256(identity + bytes(embedding[:65536])).hexdigest()[:16]
    return cache_dir() / "trained-adapters" / f"{recipe.name}-{digest}"


class _Trainer:
    """A model in bf16 through which gradients flow back to the thin matrices alone, which are fp32."""

    def __init__(self, model: OpenModel) -> None:
        import torch

        from headrace.kernels.torch_blocks import TorchAttention, TorchMlp

        self._config, self._name = model.config, model.name
        self._blocks: list[TorchAttention | TorchMlp] = []
        layer = -1
        for spec in model.config.blocks:
            layer += isinstance(spec, AttentionSpec)
            part = "attention" if isinstance(spec, AttentionSpec) else "mlp"

            def read(name: str, prefix: str = f"layer.{layer}.{part}.") -> Tensor:
                return torch.from_numpy(dequantise(model.weights.tensor(prefix + name))).bfloat16()

            eps = model.config.norm_eps
            self._blocks.append(TorchAttention(spec, read, eps) if isinstance(spec, AttentionSpec) else TorchMlp(spec, read, eps))
        names = ("embedding", "final_norm", "embedding" if model.config.tied_head else "head")
        self._embedding, self._gain, self._head = (
            torch.from_numpy(dequantise(model.weights.tensor(name))).bfloat16() for name in names
        )

    def train(self, recipe: Recipe, tokens: Sequence[int], report: Callable[[int], None]) -> Adapter:
        """Some steps of AdamW on windows of ``tokens``."""
        import torch
        import torch.nn.functional as F

        seed = int.from_bytes(hashlib.sha256(recipe.name.encode()).digest()[:4])
        generator = torch.Generator().manual_seed(seed)
        pairs = self._begin(recipe, generator)
        optimiser = torch.optim.AdamW([matrix for pair in pairs.values() for matrix in pair], lr=_RATE)
        for step in range(STEPS):
            report(step)
            for group in optimiser.param_groups:
                group["lr"] = _rate(step, recipe.rank)
            start = int(torch.randint(len(tokens) - WINDOW - 1, (1,), generator=generator))
            window = torch.tensor(tokens[start : start + WINDOW + 1])
            optimiser.zero_grad()
            loss = F.cross_entropy(self._logits(window[:-1], pairs), window[1:])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        layers: list[dict[str, LowRank]] = [{} for _ in range(self._config.layers)]
        for (layer, module), (a, b) in pairs.items():
            layers[layer][module] = LowRank(round_bf16(a.detach().numpy()), round_bf16(b.detach().numpy()), _ALPHA)
        return Adapter(tuple(layers), self._name)

    def _begin(self, recipe: Recipe, generator: Generator) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
        """A at random, B zero: at first nothing is changed."""
        import torch

        pairs = {}
        for layer, sides in enumerate(module_sides(self._config)):
            for module in recipe.modules:
                inputs, outputs = sides[module]
                a = torch.empty(recipe.rank, inputs).uniform_(-1.0, 1.0, generator=generator) / math.sqrt(inputs)
                pairs[layer, module] = a.requires_grad_(), torch.zeros(outputs, recipe.rank).requires_grad_()
        return pairs

    def _logits(self, tokens: Tensor, pairs: dict[tuple[int, str], tuple[Tensor, Tensor]]) -> Tensor:
        """[T, vocab] of one sequence."""
        import torch

        from headrace.kernels.torch_blocks import BatchPlaces, TorchAttention, rms_norm
        from headrace.kernels.torch_pages import PagedRows

        positions = torch.arange(len(tokens))
        places = BatchPlaces(positions, positions, positions, (PagedRows(0, len(tokens), positions, len(tokens)),))
        x, layer = self._embedding[tokens] * self._config.embedding_scale, -1
        for block in self._blocks:
            if isinstance(block, TorchAttention):
                layer += 1
                frequencies = torch.from_numpy(np.asarray(inverse_frequencies(block.spec)))
                angle = positions[:, None].float() * frequencies
                x = block(x, places, _LivePages(), (angle.cos(), angle.sin()), _addition(layer, pairs))
            else:
                x = block(x, _addition(layer, pairs))
        return rms_norm(x, self._gain, self._config.norm_eps).matmul(self._head.T).float()


def _rate(step: int, rank: int) -> float:
    """Up, then down to nearly nothing; less for higher ranks, whose changes add up. A constant one left adapters that knew less."""
    height = _RATE * math.sqrt(8 / rank)
    return height * min(1.0, (step + 1) / _WARM) * (1.0 - step / STEPS)


def _addition(layer: int, pairs: dict[tuple[int, str], tuple[Tensor, Tensor]]) -> Addition:
    def add(module: str, x: Tensor) -> Tensor | None:
        pair = pairs.get((layer, module))
        return None if pair is None else _ALPHA * (x @ pair[0].to(x).T @ pair[1].to(x).T)

    return add


class _LivePages:
    """Keys and values of one pass as they are, so that gradients flow through them."""

    def write(self, page: Tensor, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """See :class:`~headrace.kernels.torch_blocks.Pages`."""
        self._both = key, value

    def read(self, rows: PagedRows) -> tuple[Tensor, Tensor]:
        """See :class:`~headrace.kernels.torch_blocks.Pages`."""
        key, value = self._both
        return key.transpose(0, 1), value.transpose(0, 1)
