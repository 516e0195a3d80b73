"""How much each API key may ask for: requests and tokens a minute, as buckets that refill steadily."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.server.auth import KeyRules

_MINUTE = 60.0
_FIRST_TOKENS_A_BYTE = 1 / 8
_SURELY = 0.5  # of the tokens that are likely
_LEARNING = 0.2


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

    def give(self, amount: float, now: float) -> None:
        """Give back what was taken and not used."""
        self._level = min(float(self.limit), self.level(now) + amount)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` (or all there can be) is at hand."""
        return max(0.0, (min(amount, float(self.limit)) - self.level(now)) * _MINUTE / self.limit)


@dataclass(slots=True)
class _Account:
    """``tokens_a_byte``: how many tokens the prompts of this tenant had lately for each byte of a body."""

    requests: Bucket | None
    tokens: Bucket | None
    tokens_a_byte: float = _FIRST_TOKENS_A_BYTE

    def estimate(self, body_bytes: int) -> int:
        """Tokens that a body of this size certainly has, as far as its tenant's others tell; no more than there can be."""
        most = self.tokens.limit if self.tokens is not None else 0
        return min(most, max(1, int(_SURELY * self.tokens_a_byte * body_bytes)))

    def learn(self, body_bytes: int, tokens: int) -> None:
        """A body of this size had so many."""
        if body_bytes:
            self.tokens_a_byte += _LEARNING * (tokens / body_bytes - self.tokens_a_byte)


class Claim:
    """What one request was let in with: one request, and an estimate of its tokens, until the prompt is known.

    Without an account nothing is limited. ``background``: no client waits for it, and it takes no place in the queue.
    """

    __slots__ = ("_account", "_body_bytes", "_clock", "_estimate", "background", "tenant")

    def __init__(
        self,
        tenant: str = "",
        account: _Account | None = None,
        body_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
        *,
        background: bool = False,
    ) -> None:
        self.tenant = tenant
        self.background = background
        self._account = account
        self._body_bytes = body_bytes
        self._clock = clock
        self._estimate = account.estimate(body_bytes) if account is not None else 0

    def take(self) -> None:
        """Take the request and the estimate. Raises ``rate_limit_exceeded`` with the time to wait; nothing is taken then."""
        account, now = self._account, self._clock()
        if account is None:
            return
        if account.requests is not None and (wait := account.requests.wait(1, now)) > 0:
            limit = account.requests.limit
            raise _exceeded(f"This key may send {limit:,} {'request' if limit == 1 else 'requests'} a minute", wait)
        if account.tokens is not None:
            if (wait := account.tokens.wait(self._estimate, now)) > 0:
                more = f"; the prompt has about {self._estimate:,}" if self._estimate > 1 else " and has used them up"
                raise _exceeded(f"This key may use {account.tokens.limit:,} tokens a minute{more}", wait)
            account.tokens.take(self._estimate, now)
        if account.requests is not None:
            account.requests.take(1, now)

    def settle(self, prompt_tokens: int) -> None:
        """The prompt is known: take its tokens instead of the estimate.

        Raises ``rate_limit_exceeded`` when they are not there; then nothing is taken, nor was.
        """
        self.drop()
        account, now = self._account, self._clock()
        if account is None or account.tokens is None:
            return
        account.learn(self._body_bytes, prompt_tokens)
        if (wait := account.tokens.wait(prompt_tokens, now)) > 0:
            if account.requests is not None:
                account.requests.give(1, now)
            raise _exceeded(f"This key may use {account.tokens.limit:,} tokens a minute; the prompt has {prompt_tokens:,}", wait)
        account.tokens.take(prompt_tokens, now)

    def used(self, tokens: int) -> None:
        """Take generated tokens, whatever is at hand."""
        if self._account is not None and self._account.tokens is not None and tokens:
            self._account.tokens.take(tokens, self._clock())

    def drop(self) -> None:
        """Give the estimate back. The request stays taken: one that was refused for what it asks counts as well."""
        if self._account is not None and self._account.tokens is not None and self._estimate:
            self._account.tokens.give(self._estimate, self._clock())
        self._estimate = 0


class RateLimits:
    """The allowances of all tenants. ``rules`` by tenant name; tenants without a rule are not limited.

    A request is let in when one request and an estimate of its prompt's tokens are at hand, before its body is read: a flood
    beyond its limits costs next to nothing. The prompt's real tokens are taken when they are counted; what it generates is
    taken as it comes, so that a long answer is never cut off and the next request waits for it instead.
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

    def enter(self, tenant: str, body_bytes: int) -> Claim:
        """Let a request with a body of this size in, or raise ``rate_limit_exceeded`` with the time to wait."""
        claim = Claim(tenant, self._accounts.get(tenant), body_bytes, self._clock)
        claim.take()
        return claim

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
