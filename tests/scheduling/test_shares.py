"""Counters of shares: what is paid, what idleness is worth, and which accounts are kept."""

from __future__ import annotations

import pytest

from headrace.scheduling.shares import CREDIT, MOST_WEIGHT, QUANTUM, Account, Shares


def waiting(shares: Shares, name: str, counter: float = 0.0) -> Account:
    """A share that waits, with a counter of its own choosing."""
    account = shares.enter(name, 1)
    shares.begin_to_wait(account)
    account.counter = counter
    return account


def test_weights_divide_what_is_paid() -> None:
    light, heavy = Account("light", 1), Account("heavy", 4)
    assert light.token_cost == 2 * light.row_cost == 8 * heavy.row_cost == 2.0
    for wrong in (0, -1, MOST_WEIGHT + 1):
        with pytest.raises(ValueError, match="from 1 to 1000"):
            Account("x", wrong)
    shares = Shares()
    account = shares.enter("a", 1)
    assert shares.enter("a", 5) is account
    assert account.weight == 5


def test_priority_is_worth_quanta() -> None:
    account = Account()
    account.counter = 2.5 * QUANTUM
    assert (account.rank(), account.rank(2), account.rank(-8)) == (2, 0, 10)


def test_idleness_earns_the_credit_and_no_more() -> None:
    shares = Shares()
    busy, busier = waiting(shares, "busy", 50_000.0), waiting(shares, "busier", 70_000.0)
    late = shares.enter("late", 1)
    shares.begin_to_wait(late)
    assert late.counter == 50_000.0 - CREDIT
    late.counter = 60_000.0
    shares.end_to_wait(late)
    shares.begin_to_wait(late)
    assert late.counter == 60_000.0, "what was served beyond the others is remembered"
    for account in (busy, late):
        shares.end_to_wait(account)
    other = shares.enter("other", 1)
    shares.begin_to_wait(other)
    assert other.counter == busier.counter - CREDIT


def test_with_nobody_waiting_the_last_to_wait_counts() -> None:
    shares = Shares()
    only = waiting(shares, "only")
    shares.end_to_wait(only)
    only.counter = 10_000.0  # it runs on
    late = shares.enter("late", 1)
    shares.begin_to_wait(late)
    assert late.counter == 10_000.0 - CREDIT


def test_one_account_when_shares_are_not_apart() -> None:
    shares = Shares(apart=False)
    assert shares.enter("a", 3) is shares.enter("b", 9)
    assert not shares.several
    apart = Shares()
    first, second = apart.enter("a", 1), apart.enter("b", 1)
    assert apart.several
    apart.leave(second)
    assert not apart.several
    apart.leave(first)
    assert not apart.several


def test_accounts_of_strangers_are_forgotten_unless_they_are_ahead() -> None:
    shares = Shares()
    stays = waiting(shares, "stays", 1e6)
    ahead = shares.enter("ahead", 1)
    ahead.counter = 2e6
    shares.leave(ahead)
    for number in range(10_000):
        account = shares.enter(f"stranger {number}", 1)
        shares.begin_to_wait(account)
        assert account.counter >= 1e6 - CREDIT
        shares.end_to_wait(account)
        shares.leave(account)
    assert len(shares.accounts) < 300
    assert shares.enter("stays", 1) is stays
    assert shares.enter("ahead", 1) is ahead
