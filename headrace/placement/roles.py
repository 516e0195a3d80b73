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
from headrace.placement.joining import read_joining
from headrace.placement.load import Load, freeness
from headrace.placement.scaling import MOST_INSTANCES, read_span
from headrace.settings.nearest import suggestion

Role = Literal["all", "prefill", "decode"]
T = TypeVar("T")


def read_instances(words: Sequence[str]) -> tuple[Role, ...]:
    """Roles in order of instances, from a number of instances, or the most of a span (``all`` each), or the role of each.

    Raises ``invalid_setting`` for a number out of bounds, an unknown role, and roles of which none takes prompts, or none tokens.
    """
    joining = read_joining(words)
    if joining is not None:
        joined: Role = "all"
        return (joined,) * joining.instances
    span = read_span(words)
    if span is not None:
        following: Role = "all"
        return (following,) * span.most
    if len(words) == 1 and words[0].strip().lstrip("+-").isdigit():
        count = int(words[0]) if len(words[0]) < 9 else MOST_INSTANCES + 1
        if not 1 <= count <= MOST_INSTANCES:
            raise _wrong(f"must be 1 to {MOST_INSTANCES} or the role of each, not {words[0][:32]}")
        every: Role = "all"
        return (every,) * count
    if not 1 <= len(words) <= MOST_INSTANCES:
        raise _wrong(f"must be a number or 1 to {MOST_INSTANCES} roles, not {len(words)} of them")
    return check_roles(words)


def check_roles(roles: Sequence[str]) -> tuple[Role, ...]:
    """Roles in order of instances. Raises ``invalid_setting`` when they can't serve."""
    known: dict[str, Role] = {name: name for name in get_args(Role)}
    found: list[Role] = []
    for role in roles:
        if role not in known:
            shown = f"{role[:32]!r}{suggestion(role[:32], known)}"
            raise _wrong(f"must be a number, or for each instance a role ({', '.join(known)}), not {shown}")
        found.append(known[role])
    if found and "all" not in found and len(set(found)) < 2:
        missing, work = ("decode", "tokens") if found[0] == "prefill" else ("prefill", "prompts")
        raise _wrong(f"leave nobody for {work}: every one has the role {found[0]}, one must be {missing} or all")
    return tuple(found)


def _wrong(message: str) -> HeadraceError:
    return HeadraceError("invalid_setting", f"instances {message}", param="instances")


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
    """When an instance takes a request over: at most ``waiting`` wait there already, and ``spare`` pages stay free behind it.

    ``at_once``: requests that one instance gives at the same time.
    """

    waiting: int = 0
    spare: int = 4
    at_once: int = 2


def who_pulls(loads: Mapping[int, Load], pages: int, rule: PullRule | None = None) -> int | None:
    """The freest instance that can take a request of so many pages over; ``None``: nobody can now, and it stays where it is."""
    rule = rule or PullRule()
    able = {
        number: freeness(load)
        for number, load in loads.items()
        if not load.leaving and load.waiting <= rule.waiting and load.pages - load.held >= pages + rule.spare
    }
    return max(able, key=lambda number: (able[number], -number), default=None)
