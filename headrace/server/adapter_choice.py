"""What a request's ``model`` and ``adapters`` mean: one model, and adapters of it that are added up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.engine.wire import MOST_ADAPTERS
from headrace.errors import HeadraceError
from headrace.server.adapter_table import AdapterTable, ServedAdapter
from headrace.server.model_table import ModelTable
from headrace.server.protocol.common import AdapterScale
from headrace.server.served_model import ServedModel

_LEAST_ALIKE = 4  # characters of a base model's name that must agree


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that answers, its adapters with their scales in the order of their sum, and the name that answers carry."""

    model: ServedModel
    adapters: tuple[tuple[ServedAdapter, float], ...]
    name: str


def choose(models: ModelTable, table: AdapterTable, name: str | None, listed: Sequence[AdapterScale]) -> Choice:
    """Find what a request names. ``name``: a model, an adapter, or ``model:adapter``; ``listed``: more adapters of that model.

    Raises ``model_not_found`` or ``adapter_not_found`` with the nearest name, ``invalid_value`` for too many or one named twice.
    """
    own: list[tuple[ServedAdapter, float]] = []
    model = models.get(name)
    if name is not None and model is None:
        own.append((_named_as_model(models, table, name), 1.0))
        model = own[0][0].model
    for number, one in enumerate(listed):
        adapter = table.find(one.id, model, f"adapters[{number}].id")
        own.append((adapter, 1.0 if one.scale is None else one.scale))
        model = adapter.model
    if len(own) > MOST_ADAPTERS:
        message = f"a request has at most {MOST_ADAPTERS} adapters, the one that 'model' names among them"
        raise HeadraceError("invalid_value", message, param="adapters")
    if len({id(adapter) for adapter, _ in own}) < len(own):
        raise HeadraceError(
            "invalid_value", "an adapter is named twice; give it once, with the sum of its scales", param="adapters"
        )
    model = model or models.find(None)
    return Choice(model, tuple(own), own[0][0].name if models.get(name) is None and name is not None else model.name)


def _named_as_model(models: ModelTable, table: AdapterTable, name: str) -> ServedAdapter:
    try:
        return table.find(name, param="model")
    except HeadraceError as error:
        prefix = next((own for model in models for own in model.entry.names if name.startswith(f"{own}:")), None)
        if error.code != "adapter_not_found" or prefix is not None:
            raise
    models.find(name, table.nearest(name))
    raise AssertionError("a name that is no model's is refused")


def base_of(models: ModelTable, text: str) -> ServedModel:
    """The model that an adapter's file means by its base model's name: the one whose name agrees longest, else the first."""
    wanted = _plain(text.rpartition("/")[2])
    found, best = models.find(None), _LEAST_ALIKE - 1
    for model in models:
        for own in map(_plain, {model.entry.root, *model.entry.names}):
            if own == wanted:
                return model
            alike = min(len(own), len(wanted))
            if alike > best and own[:alike] == wanted[:alike]:
                found, best = model, alike
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
