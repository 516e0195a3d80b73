"""Item: a unit of work with a token target, the only thing that ever takes part in a step."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from headrace.scheduling.shares import Account

Root = str | tuple[str, tuple[tuple[int, float], ...]]
"""What tokens alone don't say of a page: whose it is, and with which adapters it was computed."""


def root_of(tenant: str, adapters: tuple[tuple[int, float], ...]) -> Root:
    """Where a sequence's pages are known: never where other adapters, generations or scales would find them."""
    return (tenant, adapters) if adapters else tenant


NEVER = 2**62
"""A position that no sequence reaches."""


class ItemKind(enum.Enum):
    """What an item's tokens are computed for."""

    GENERATE = "generate"
    EMBED = "embed"


class ItemState(enum.Enum):
    """Where an item stands. Only RUNNING items hold pages, and MOVING ones that wait for adapters; other pages of a MOVING item are
    on their way back to it."""

    WAITING = "waiting"
    MOVING = "moving"
    RUNNING = "running"
    FINISHED = "finished"


MOST_PRIORITY = 8
AGEING = 64  # arrivals: so many later ones may pass an item for each step of priority that they are ahead


def order_of(arrival: int, priority: int) -> tuple[int, int]:
    """Place of the ``arrival``-th item among its share's: each step of priority counts like having come 64 arrivals earlier.

    So age makes up for priority, and nobody starves: an item of priority *p* is passed by less than 64·(8 − p) later ones of its
    share. How shares go before each other is said in :mod:`headrace.scheduling.waiting`.
    """
    return arrival - AGEING * priority, arrival


@dataclass(slots=True, eq=False)
class Item:
    """One sequence that catches up to its token target.

    ``tokens`` is prompt plus everything sampled so far; ``computed`` of them have their KV in ``pages``. There is no
    prefill or decode phase: each step computes some of ``tokens[computed:]``, and when the last token's row has been
    computed a new token is sampled and appended, so the target moves one ahead.

    ``score_from``: the first position whose logits are wanted besides the last (prompt logprobs); ``None`` for none.

    ``priority``: −8 … 8, more goes first (:func:`order_of`). ``tenant``: whose pages it may reuse, and who may reuse its own.
    ``share``: who pays for it, and ``weight`` how much of the machine that share is due beside others.
    ``adapters``: (generation, scale) of each adapter that it runs with, in the order in which they are added up.

    The last fields are the scheduler's own: ``account`` is the share's, ``charged`` the prompt's tokens that it has paid for,
    ``order`` is the place in all queues, ``reserved`` the pages
    promised and not yet taken, ``writable`` the position up to which the held pages may be written without asking,
    ``scored`` the position up to which wanted logits were delivered, ``goal`` the positions that are ever computed,
    ``forks`` the items that wait for this one's prompt. ``found``: tokens whose pages were there when it was first admitted.
    ``shared``: those whose pages others held too. ``lost``: tokens that were computed when it was preempted. ``known``: pages
    that are in the prefix index; ``remember_at``: the position at which the next one is full.
    ``passed``: later items that were admitted before it because their adapters cost less.
    """

    item_id: int
    kind: ItemKind
    tokens: list[int]
    prompt_length: int
    max_tokens: int
    arrival: float = 0.0
    deadline: float | None = None
    score_from: int | None = None
    priority: int = 0
    tenant: str = ""
    share: str = ""
    weight: int = 1
    adapters: tuple[tuple[int, float], ...] = ()
    state: ItemState = ItemState.WAITING
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    preemptions: int = 0
    recomputed: int = 0
    account: Account = field(default_factory=Account)
    charged: int = 0
    order: tuple[int, int] = (0, 0)
    reserved: int = 0
    writable: int = 0
    scored: int = 0
    goal: int = 0
    forks: list[Item] = field(default_factory=list)
    found: int = 0
    shared: int = 0
    lost: int = 0
    known: int = 0
    remember_at: int = NEVER
    passed: int = 0

    @property
    def root(self) -> Root:
        """Where its pages are known."""
        return root_of(self.tenant, self.adapters)

    @property
    def pending(self) -> int:
        """Tokens that are known and not yet computed."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def is_decoding(self) -> bool:
        """True when exactly the newest token is missing, so that one row yields the next one."""
        return self.pending == 1 and self.computed > 0
