"""Who calls and what he may ask for: weights, priorities and service tiers by API key, and names for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from headrace.errors import HeadraceError
from headrace.scheduling.item import MOST_PRIORITY
from headrace.server.auth import OTHERS, KeyRules

TIERS = {"auto": 0, "default": 0, "flex": -4, "priority": 4}
"""Priorities that OpenAI's service tiers stand for."""

MOST_LABELS = 32
"""Tenants that have metrics of their own, the first of the key file; all others share one label."""

_NO_KEYS = KeyRules(max_priority=MOST_PRIORITY)


class Ranked(Protocol):
    """A body that may say how urgent it is."""

    @property
    def priority(self) -> int | None:
        """−8 … 8."""

    @property
    def service_tier(self) -> str | None:
        """A key of :data:`TIERS`."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What one call is served as. ``tier``: what the answer says, ``None`` when the call did not ask; ``label``: for metrics."""

    tenant: str = ""
    weight: int = 1
    priority: int = 0
    tier: str | None = None
    label: str = ""

    @property
    def told_tier(self) -> str | msgspec.UnsetType:
        """``tier`` as a field of an answer, left out when the call did not ask."""
        return self.tier if self.tier is not None else msgspec.UNSET


class Tenants:
    """The rules of all tenants. ``rules`` by tenant name; ``None``: the server has no keys, and whoever reaches it may do all."""

    def __init__(self, rules: Mapping[str, KeyRules] | None = None) -> None:
        self.rules = rules or {}
        self._others = KeyRules() if rules is not None else _NO_KEYS
        self._labels = {tenant: rule.name or tenant[:8] for tenant, rule in list(self.rules.items())[:MOST_LABELS]}

    def sees_all(self, tenant: str) -> bool:
        """True for who may see the requests of others: an operator's key, and everybody where there are no keys."""
        return self._others is _NO_KEYS or bool(self.rules.get(tenant, self._others).operator)

    def label(self, tenant: str) -> str:
        """The tenant's name in metrics; one of at most 34."""
        return self._labels.get(tenant, OTHERS) if tenant else ""

    def standing(self, tenant: str, body: Ranked) -> Standing:
        """How a call of this tenant is served.

        A tier above what the key allows is served as ordinary, and the answer says so, as OpenAI's do. Raises
        ``permission_denied`` for a number above it, ``invalid_value`` for a number beside a tier that stands for another one.
        """
        rule = self.rules.get(tenant, self._others)
        wanted, tier = body.priority, body.service_tier
        if wanted is not None and TIERS[tier or "auto"] != 0:
            raise HeadraceError("invalid_value", f"'priority' can't be combined with the service tier '{tier}'.", param="priority")
        if wanted is not None and wanted > rule.max_priority:
            message = f"'priority' may be at most {rule.max_priority} with this key, not {wanted}."
            raise HeadraceError("permission_denied", message, param="priority")
        priority = min(TIERS[tier or "auto"] if wanted is None else wanted, rule.max_priority)
        return Standing(tenant, rule.weight, priority, _served(tier, priority), self.label(tenant))


def _served(tier: str | None, priority: int) -> str | None:
    if tier in (None, "flex"):
        return tier
    return "priority" if tier == "priority" and priority > 0 else "default"
