"""Roles of instances: which kinds of work each takes. Pure.

After "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving": prompts are computed
in one place and tokens in another, and the second takes requests over when it can, so that a burst of prompts waits in the memory
of the first. One thing differs: a request that nobody has taken over yet is decoded where it is, it does not stand still.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from headrace.errors import HeadraceError
from headrace.placement.load import Load, freeness

Role = Literal["all", "prefill", "decode"]
T = TypeVar("T")


def check_roles(roles: Sequence[str], instances: int) -> tuple[Role, ...]:
    """Roles in order of instances; none given: ``all`` for each. Raises ``invalid_setting`` when they can't serve."""
    if not roles:
        every: Role = "all"
        return (every,) * instances
    known: dict[str, Role] = {name: name for name in get_args(Role)}
    found: list[Role] = []
    for role in roles:
        if role not in known:
            raise _wrong(f"roles are {', '.join(known)}, not {role!r}")
        found.append(known[role])
    if len(found) != instances:
        raise _wrong(f"{len(found)} roles were given for {instances} instances; give one for each")
    if "all" not in found and len(set(found)) < 2:
        missing = "decode" if found[0] == "prefill" else "prefill"
        raise _wrong(f"every instance has the role {found[0]}; one must be all or {missing}")
    return tuple(found)


def _wrong(message: str) -> HeadraceError:
    return HeadraceError("invalid_setting", message, param="roles")


def for_prompts(places: Iterable[T], role: Mapping[T, Role]) -> list[T]:
    """Those that take new requests; all when there is none, because an answer in the wrong place is better than no answer."""
    places = list(places)
    return [place for place in places if role[place] != "decode"] or places


def for_tokens(places: Iterable[T], role: Mapping[T, Role]) -> list[T]:
    """Those that take requests which have their first token; all when there is none."""
    places = list(places)
    return [place for place in places if role[place] != "prefill"] or places


@dataclass(frozen=True, slots=True)
class PullRule:
    """When an instance takes a request over: at most ``waiting`` wait there already, and ``spare`` pages stay free behind it."""

    waiting: int = 0
    spare: int = 4


def who_pulls(loads: Mapping[int, Load], pages: int, rule: PullRule | None = None) -> int | None:
    """The freest instance that can take a request of so many pages over; ``None``: nobody can now, and it stays where it is."""
    rule = rule or PullRule()
    able = {
        number: freeness(load)
        for number, load in loads.items()
        if not load.leaving and load.waiting <= rule.waiting and load.pages - load.held >= pages + rule.spare
    }
    return max(able, key=lambda number: (able[number], -number), default=None)
