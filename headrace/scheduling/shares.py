"""Who was served how much: virtual token counters of the shares that the machine is divided among.

The counters are those of VTC ("Fairness in Serving Large Language Models"): a share pays for each token that is computed for it,
divided by its weight, and whoever has paid least is served next. Changed here: a prompt is paid for row by row as it is
computed, so that rows found in the prefix index, and rows computed again after a preemption, cost nothing; counters are
compared in quanta, so that shares that are about equal don't change places with every token; and a share that comes back from
idleness may be a few quanta behind the others (as sleepers are in "Borrowed-virtual-time (BVT) scheduling"), so that a user who
asks for little is read at once.
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

QUANTUM = 512
"""Computed prompt tokens by which two shares may differ and still count as equal; also what one step of priority is worth."""

CREDIT = 4 * QUANTUM
"""The most that a share can be behind when it comes back, however long it was idle."""

OUTPUT_COST = 2
"""A generated token costs as much as so many tokens of a prompt."""

MOST_WEIGHT = 1000
_FEWEST_KEPT = 64


class Account:
    """One share's counter. ``counter``: tokens paid for so far, divided by ``weight``; a share of weight 2 gets twice as much.

    ``row_cost`` and ``token_cost`` are what one row of a prompt and one generated token add. ``live``: its items.
    """

    __slots__ = ("counter", "in_heap", "live", "queued", "row_cost", "share", "token_cost", "weight")

    def __init__(self, share: str = "", weight: int = 1) -> None:
        self.share = share
        self.counter = 0.0
        self.live = 0
        self.queued = False
        self.in_heap = False
        self.set_weight(weight)

    def set_weight(self, weight: int) -> None:
        """What is paid from now on counts by this weight. Raises ``ValueError`` outside 1 … 1000."""
        if not 1 <= weight <= MOST_WEIGHT:
            raise ValueError(f"a weight is a whole number from 1 to {MOST_WEIGHT}, not {weight}")
        self.weight = weight
        self.row_cost = 1 / weight
        self.token_cost = OUTPUT_COST / weight

    def rank(self, priority: int = 0) -> int:
        """Quanta paid for, less the priority of whom the account stands for: the smallest goes first."""
        return int(self.counter // QUANTUM) - priority


class Shares:
    """The accounts of one scheduler. ``apart``: False keeps one account for everybody, so that nobody's share counts."""

    __slots__ = ("_accounts", "_behind", "_keep", "_last", "_live", "apart")

    def __init__(self, *, apart: bool = True) -> None:
        self.apart = apart
        self._accounts: dict[str, Account] = {}
        self._behind: list[tuple[float, str, Account]] = []  # accounts with waiting items, by a counter they had once
        self._last: Account | None = None  # whose last waiting item was admitted when nobody else waited
        self._live = 0
        self._keep = _FEWEST_KEPT

    @property
    def several(self) -> bool:
        """True when items of more than one share are live."""
        return self._live > 1

    @property
    def accounts(self) -> tuple[Account, ...]:
        """All accounts that are kept."""
        return tuple(self._accounts.values())

    def enter(self, share: str, weight: int) -> Account:
        """An item of that share is live from now on; its account. A new weight counts for everything that is paid later."""
        name = share if self.apart else ""
        account = self._accounts.get(name)
        if account is None:
            self._forget()
            account = self._accounts[name] = Account(name, weight if self.apart else 1)
        elif self.apart and account.weight != weight:
            account.set_weight(weight)
        self._live += account.live == 0
        account.live += 1
        return account

    def leave(self, account: Account) -> None:
        """One item of the account is no longer live."""
        account.live -= 1
        self._live -= account.live == 0

    def begin_to_wait(self, account: Account) -> None:
        """The account has a waiting item and had none: what it was idle is not made up for, beyond the credit."""
        account.counter = max(account.counter, self._floor() - CREDIT)
        account.queued = True
        if not account.in_heap:
            account.in_heap = True
            heappush(self._behind, (account.counter, account.share, account))

    def end_to_wait(self, account: Account) -> None:
        """The account's last waiting item was admitted or dropped."""
        account.queued = False
        self._last = account

    def _floor(self) -> float:
        """The least counter among shares that wait; when none does, that of the one that waited last."""
        behind = self._behind
        while behind:
            counter, share, account = behind[0]
            if not account.queued:
                heappop(behind)
                account.in_heap = False
            elif account.counter != counter:
                heapreplace(behind, (account.counter, share, account))
            else:
                return counter
        return self._last.counter if self._last is not None else 0.0

    def _forget(self) -> None:
        """Drop idle accounts that would start anew with the same counter, each time their number has doubled."""
        if len(self._accounts) < self._keep:
            return
        start = self._floor() - CREDIT
        self._accounts = {
            share: account for share, account in self._accounts.items()
            if account.live or account.in_heap or account is self._last or account.counter > start
        }  # fmt: skip
        self._keep = max(_FEWEST_KEPT, 2 * len(self._accounts))
