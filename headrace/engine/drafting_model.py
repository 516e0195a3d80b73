"""Opens a draft model beside the model that is served, after checking that it can draft for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from headrace.engine.calibration import Calibration
from headrace.engine.pool_size import kv_format, page_bytes
from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.kernels.interface import ChainRunner
from headrace.kernels.sampler import Sampler
from headrace.memory.arena import Arena
from headrace.models.catalog import OpenModel, find_model, open_model
from headrace.models.packages import Progress
from headrace.scheduling.cost import Cost
from headrace.speculation.draft_model import DraftModel
from headrace.speculation.proposers import choose_proposers
from headrace.text.open_tokenizer import open_tokenizer

SHARE = 4
"""The pool of the served model has this many times the pages of the draft's."""


@dataclass(frozen=True, slots=True)
class Served:
    """The model that is drafted for: what it costs, and ``pages`` of its pool."""

    model: OpenModel
    cost: Cost
    pages: int


@dataclass(slots=True)
class Draft:
    """A draft model and its memory, which :meth:`close` gives back."""

    proposer: DraftModel
    arena: Arena

    def close(self) -> None:
        """Unmap its pages."""
        self.arena.close()


@dataclass(frozen=True, slots=True)
class Openers:
    """How a chain is made, measured and sampled from; ``progress`` is told of files being put together."""

    chain: Callable[[OpenModel], ChainRunner]
    calibrate: Callable[[OpenModel, ChainRunner, Arena], Calibration]
    sampler: Callable[[ChainRunner], Sampler]
    progress: Progress | None = None


def open_draft(name: str, served: Served, openers: Openers) -> Draft:
    """The model of that name as a proposer. Raises ``model_not_found``, and ``invalid_setting`` for one that can't draft."""
    model = open_model(find_model(name), openers.progress)
    check_vocabulary(model, served.model)
    small, large = _parameters(model), _parameters(served.model)
    if small > large:
        sizes = f"{small / 1e6:,.0f} million parameters and {served.model.name} {large / 1e6:,.0f} million"
        message = f"draft model {model.name} has {sizes}: a draft must not be larger than the model it drafts for"
        raise HeadraceError("invalid_setting", message, param="speculation")
    chain = openers.chain(model)
    layout = chain.page_layout
    arena = Arena(max(1, served.pages // SHARE), layout.page_bytes, layout.strips)
    cost = openers.calibrate(model, chain, arena).cost
    return Draft(DraftModel(chain, arena.rows, openers.sampler(chain), cost, served.cost), arena)


def check_vocabulary(draft: OpenModel, served: OpenModel) -> None:
    """Refuse a draft whose token ids mean something else. Ids behind the last token (padding) may differ in number."""
    sources = draft.tokenizer_source, served.tokenizer_source
    if sources[0] == sources[1]:
        return
    key = "tokenizer.ggml.tokens"
    tokens: list[Sequence[object]] = []
    for source in sources:
        named = source.get(key) if isinstance(source, Mapping) else None
        if isinstance(named, Sequence):
            tokens.append(named)
    if len(tokens) < 2:
        tokens = [[one.token_bytes(token) for token in range(one.vocab_size)] for one in map(open_tokenizer, sources)]
    shared = min(map(len, tokens))
    if list(tokens[0][:shared]) != list(tokens[1][:shared]) or draft.config.eos_ids[:1] != served.config.eos_ids[:1]:
        message = f"draft model {draft.name} has another vocabulary than {served.name}: its tokens would mean something else"
        raise HeadraceError("invalid_setting", message, param="speculation")


def draft_bytes(settings: EngineSettings, pages: int) -> tuple[int, int] | None:
    """Bytes of the weights and the pages of the draft that the settings name, beside a pool of ``pages``; ``None`` without one."""
    name = choose_proposers(settings.speculation).draft
    if not name:
        return None
    card = find_model(name)
    return card.size_bytes, max(1, pages // SHARE) * page_bytes(open_model(card).config, kv_format("auto", settings.device))


def _parameters(model: OpenModel) -> int:
    """Numbers in all of its tensors."""
    return sum(math.prod(model.weights.outline(name).shape) for name in model.weights.names())
