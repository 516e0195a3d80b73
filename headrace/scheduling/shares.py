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
    ``group``: the accounts with live items among which one share's due is divided equally (:meth:`Shares.enter`), with its own.
    """

    __slots__ = ("counter", "group", "in_heap", "live", "queued", "row_cost", "share", "token_cost", "weight")

    def __init__(self, share: str = "", weight: int = 1, group: Group | None = None) -> None:
        self.share = share
        self.group = group
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
        self.divide()

    def divide(self) -> None:
        """Each of several accounts of one share pays for all of them, so that together they get what one would."""
        parts = max(1, len(self.group)) if self.group is not None else 1
        self.row_cost = parts / self.weight
        self.token_cost = parts * OUTPUT_COST / self.weight

    def rank(self, priority: int = 0) -> int:
        """Quanta paid for, less the priority of whom the account stands for: the smallest goes first."""
        return int(self.counter // QUANTUM) - priority


Group = dict[str, Account]
"""By their names."""


class Shares:
    """The accounts of one scheduler. ``apart``: False keeps one account for everybody, so that nobody's share counts."""

    __slots__ = ("_accounts", "_behind", "_groups", "_keep", "_last", "_live", "apart")

    def __init__(self, *, apart: bool = True) -> None:
        self.apart = apart
        self._accounts: dict[str, Account] = {}
        self._groups: dict[str, Group] = {}
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

    def enter(self, share: str, weight: int, part: str | None = None) -> Account:
        """An item of that share is live from now on; its account. A new weight counts for everything that is paid later.

        ``part``: items of a share are served fairly among so called parts of it as well (the adapters that they use); the parts
        that have live items divide what the share is due. A share is used with parts or without, never both.
        """
        name = (share if part is None else f"{share}\n{part}") if self.apart else ""
        account = self._accounts.get(name)
        if account is None:
            self._forget()
            group = self._groups.setdefault(share, {}) if self.apart and part is not None else None
            account = self._accounts[name] = Account(name, weight if self.apart else 1, group)
        elif self.apart and account.weight != weight:
            account.set_weight(weight)
        if account.live == 0:
            self._live += 1
            self._regroup(share, account, joins=True)
        account.live += 1
        return account

    def leave(self, account: Account) -> None:
        """One item of the account is no longer live."""
        account.live -= 1
        if account.live == 0:
            self._live -= 1
            self._regroup(account.share.rpartition("\n")[0], account, joins=False)

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

    def _regroup(self, share: str, account: Account, *, joins: bool) -> None:
        """One part more or less of a share has live items."""
        if account.group is None:
            return
        group = account.group = self._groups.setdefault(share, account.group)
        if joins:
            group[account.share] = account
        else:
            del group[account.share]
        account.divide()
        for other in group.values():
            other.divide()
        if not group:
            del self._groups[share]

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
