"""How much each API key may ask for: requests and tokens a minute, as buckets that refill steadily."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.server.auth import KeyRules

_MINUTE = 60.0


class Bucket:
    """``limit`` a minute, all of it at hand at first. What is taken comes back steadily; debts have to be waited off."""

    __slots__ = ("_level", "_since", "limit")

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._level = float(limit)
        self._since = now

    def level(self, now: float) -> float:
        """What is at hand; negative after more was used than there was."""
        self._level = min(float(self.limit), self._level + (now - self._since) * self.limit / _MINUTE)
        self._since = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Use up ``amount``, whatever is there."""
        self._level = self.level(now) - amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` (or all there can be) is at hand."""
        return max(0.0, (min(amount, float(self.limit)) - self.level(now)) * _MINUTE / self.limit)


@dataclass(frozen=True, slots=True)
class _Account:
    requests: Bucket | None
    tokens: Bucket | None


class RateLimits:
    """The allowances of all tenants. ``rules`` by tenant name; tenants without a rule are not limited.

    A request is admitted when one request and its prompt's tokens are at hand; what it generates is taken as it comes, so
    that a long answer is never cut off and the next request waits for it instead.
    """

    def __init__(self, rules: Mapping[str, KeyRules], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        now = clock()
        self._accounts = {
            tenant: _Account(
                Bucket(rule.requests_per_minute, now) if rule.requests_per_minute is not None else None,
                Bucket(rule.tokens_per_minute, now) if rule.tokens_per_minute is not None else None,
            )
            for tenant, rule in rules.items()
        }

    def admit(self, tenant: str, prompt_tokens: int) -> None:
        """Take one request and its prompt. Raises ``rate_limit_exceeded`` with the time to wait; nothing is taken then."""
        account = self._accounts.get(tenant)
        if account is None:
            return
        now = self._clock()
        if account.requests is not None and (wait := account.requests.wait(1, now)) > 0:
            limit = account.requests.limit
            raise _exceeded(f"This key may send {limit:,} {'request' if limit == 1 else 'requests'} a minute", wait)
        if account.tokens is not None and (wait := account.tokens.wait(prompt_tokens, now)) > 0:
            raise _exceeded(f"This key may use {account.tokens.limit:,} tokens a minute; the prompt has {prompt_tokens:,}", wait)
        if account.requests is not None:
            account.requests.take(1, now)
        if account.tokens is not None:
            account.tokens.take(prompt_tokens, now)

    def used(self, tenant: str, tokens: int) -> None:
        """Take generated tokens."""
        account = self._accounts.get(tenant)
        if account is not None and account.tokens is not None and tokens:
            account.tokens.take(tokens, self._clock())

    def headers(self, tenant: str) -> list[tuple[bytes, bytes]]:
        """``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` as OpenAI's clients read them."""
        account = self._accounts.get(tenant)
        if account is None:
            return []
        now = self._clock()
        found = []
        for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is None:
                continue
            remaining = max(0, math.floor(bucket.level(now)))
            for what, value in (
                ("limit", str(bucket.limit)), ("remaining", str(remaining)), ("reset", duration(bucket.wait(bucket.limit, now))),
            ):  # fmt: skip
                found.append((f"x-ratelimit-{what}-{name}".encode("ascii"), value.encode("ascii")))
        return found


def duration(seconds: float) -> str:
    """A time as these headers spell it: ``0s``, ``250ms``, ``7.5s``, ``1m3s``."""
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(math.ceil(seconds * 10) / 10, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


def _exceeded(problem: str, wait: float) -> HeadraceError:
    return HeadraceError("rate_limit_exceeded", f"{problem}. Try again in {duration(wait)}.", retry_after=wait)
