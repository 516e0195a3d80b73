"""The proof that a scheduler's items, lists and pages agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from headrace.memory.moves import Moves
from headrace.memory.page_pool import PagePool
from headrace.scheduling.handover import Handover
from headrace.scheduling.item import Item, ItemState
from headrace.scheduling.keeping import Keeping
from headrace.scheduling.residency import Residency
from headrace.scheduling.roster import Roster
from headrace.scheduling.shares import Account
from headrace.scheduling.swapping import Swapping


@dataclass(frozen=True, slots=True)
class Holders:
    """Who may hold pages beside items. ``lent``: page lists of others."""

    swapping: Swapping | None = None
    keeping: Keeping | None = None
    handover: Handover | None = None
    lent: Callable[[], Iterable[Sequence[int]]] = tuple


def check_items(roster: Roster, residency: Residency, others: Holders | None = None) -> None:
    """Every live item is in one place, in order, with pages that match what it has computed; the pool agrees.

    Raises ``AssertionError`` naming the first fault.
    """
    others = others or Holders()
    pool, adapters, handover = residency.pool, residency.adapters, others.handover
    moves = others.swapping.moves if others.swapping is not None else None
    kept = others.keeping.pages if others.keeping is not None else None
    items = roster.items.values()
    forks = [child for item in items for child in item.forks]
    places = [*roster.waiting, *roster.prompts, *roster.decodes, *roster.parked.values(), *roster.moving.values(), *forks]
    _require(len(places) == len(items), f"{len(items)} live items stand in {len(places)} places")
    _require({id(item) for item in places} == {id(item) for item in items}, "an item stands in two places or in none")
    for queue in (roster.prompts, roster.decodes):
        orders = [item.order for item in queue]
        _require(orders == sorted(orders), "a list is not in order of arrival")
    _check_shares(roster)
    for item in (*roster.waiting, *forks):
        _require(item.state is ItemState.WAITING, f"item {item.item_id} waits and is {item.state.value}")
        _require(not item.pages and not item.reserved, f"item {item.item_id} waits and holds pages")
        _check_away(item, moves)
    for item in roster.moving.values():
        _require(item.state is ItemState.MOVING, f"item {item.item_id} moves and is {item.state.value}")
        if item.pages:
            _require(adapters.is_coming(item.item_id), f"item {item.item_id} waits for nothing")
            _check_running(item, pool)
        else:
            _check_away(item, moves)
    for item in (*roster.prompts, *roster.decodes, *roster.parked.values()):
        _require(item.state is ItemState.RUNNING, f"item {item.item_id} runs and is {item.state.value}")
        _check_running(item, pool)
    _require(all(item.is_decoding for item in roster.decodes), "a decode misses more than its newest token")
    _require(not any(item.is_decoding for item in roster.prompts), "a prompt misses only its newest token")
    promised = sum(item.reserved for item in items) + (handover.reserved if handover is not None else 0)
    _require(pool.reserved == promised, "reservations don't add up")
    pool.check_integrity(
        [
            *(item.pages for item in items),
            *(moves.holders() if moves is not None else ()),
            *(kept.holders() if kept is not None else ()),
            *(handover.holders() if handover is not None else ()),
            *adapters.store.holders(),
            *others.lent(),
        ]
    )
    adapters.check_integrity(items)
    if kept is not None:
        kept.check_integrity()
        coming = {item_id for item_id in roster.items if kept.coming(item_id)}
        _require(coming <= roster.moving.keys(), "kept pages come for an item that does not move")
    if moves is not None:
        moves.check_integrity()


def _check_shares(roster: Roster) -> None:
    """The line's first is the least of all; accounts know how many items they have."""
    first = roster.waiting.first()
    heads: dict[Account, Item] = {}
    for item in sorted(roster.waiting, key=lambda item: item.order):
        heads.setdefault(item.account, item)
    least = min(heads.values(), key=lambda item: (item.account.rank(item.priority), item.order), default=None)
    _require(first is least, "the first to wait is not the least")
    live = Counter(item.account for item in roster.items.values())
    for account, count in live.items():
        _require(account.live == count, f"share '{account.share}' counts {account.live} of {count} items")
        _require(account.queued == (account in heads), f"share '{account.share}' is wrong about waiting")


def _check_away(item: Item, moves: Moves | None) -> None:
    lodging = moves.find(item.item_id) if moves is not None else None
    stored = 0 if lodging is None else lodging.tokens
    _require(item.computed == stored, f"item {item.item_id} is away with {stored} positions of {item.computed}")


def _check_running(item: Item, pool: PagePool) -> None:
    name = f"item {item.item_id}"
    held = len(item.pages) * pool.page_tokens
    _require(0 <= item.computed <= len(item.tokens), f"{name} computed {item.computed} of {len(item.tokens)} tokens")
    _require(item.computed <= held, f"{name} computed {item.computed} tokens in pages for {held}")
    _require(item.writable in (held, item.computed), f"{name} may write up to {item.writable} of {held}")
    _require(len(set(item.pages)) == len(item.pages), f"{name} holds a page twice")
    _require(not item.forks or item.generated == 0, f"{name} is past its prompt and still has forks")
    if item.writable > item.computed:
        owners = {pool.references(page) for page in item.pages[item.computed // pool.page_tokens :]}
        _require(owners <= {1}, f"{name} may write into a shared page")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise AssertionError(problem)
