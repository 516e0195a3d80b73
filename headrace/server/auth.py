"""API keys and browser defence: who may call at all."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from headrace.errors import HeadraceError
from headrace.scheduling.item import MOST_PRIORITY
from headrace.scheduling.shares import MOST_WEIGHT

OPEN_PATHS = frozenset({"/livez"})
"""Routes without a key: a liveness probe says nothing but that the process answers. (The console's page, which says nothing
either, is the other exception.)"""

_MAX_KEY = 512
_MAX_RULE = 1_000_000_000
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}\Z")
_NUMBER = re.compile(r"-?[0-9]{1,10}\Z")
OTHERS = "other"
"""What metrics call all tenants that have no name of their own there."""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What the holder of a key may use; ``None``: no limit.

    ``weight``: the share of the machine that the key is due beside others. ``max_priority``: the highest that its requests may
    have. ``operator``: 1 shows the requests of all keys in the console, 0 its own. ``name``: what metrics call it; empty: the
    beginning of the tenant's name.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    weight: int = 1
    max_priority: int = 0
    operator: int = 0
    name: str = ""


_BOUNDS = {
    "requests_per_minute": (1, _MAX_RULE), "tokens_per_minute": (1, _MAX_RULE),
    "operator": (0, 1), "weight": (1, MOST_WEIGHT), "max_priority": (-MOST_PRIORITY, MOST_PRIORITY),
}  # fmt: skip


class KeyRing:
    """The server's keys as hashes; the keys themselves are not kept. ``rules`` by :func:`tenant_name` of the key."""

    def __init__(self, keys: Mapping[str, KeyRules]) -> None:
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
        self.rules = {tenant_name(key): rules for key, rules in keys.items()}

    @classmethod
    def read(cls, path: str) -> KeyRing:
        """Read one key a line, with its rules behind it; blank lines and lines that start with # don't count.

        A line of the key ``*`` gives the rules of keys that have none of their own::

            * requests_per_minute=60
            sk-of-the-lab requests_per_minute=600 tokens_per_minute=20000 weight=3 max_priority=4 name=lab

        Raises ``invalid_setting`` for a file that can't be read, has no key, or a line that says anything else.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HeadraceError("invalid_setting", f"the key file can't be read: {error}", param="api_key_file") from error
        keys: dict[str, KeyRules | None] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            key, *words = line.split()
            if len(key) > _MAX_KEY or not key.isascii() or not key.isprintable():
                raise _bad_line(number, f"must begin with a key of at most {_MAX_KEY} visible ASCII characters")
            if key in keys:
                raise _bad_line(number, "repeats a key")
            keys[key] = _key_rules(words, number) if words else None
        common = keys.pop("*", None) or KeyRules()
        if common.name:
            raise HeadraceError("invalid_setting", "the key file's line of '*' can't have a name", param="api_key_file")
        if not keys:
            raise HeadraceError("invalid_setting", "the key file holds no key", param="api_key_file")
        return cls({key: rules or common for key, rules in keys.items()})

    def admits(self, key: str) -> bool:
        """True when the key is one of ours. Every hash is compared, in constant time, so timing tells nothing."""
        digest = hashlib.sha256(key[: _MAX_KEY + 1].encode()).digest()
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(digest, known)
        return found


def _key_rules(words: list[str], line: int) -> KeyRules:
    numbers: dict[str, int] = {}
    given = ""
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or (name not in _BOUNDS and name != "name"):
            raise _bad_line(line, f"may have only {', '.join(_BOUNDS)} and name behind the key, as name=value")
        if name == "name":
            if _NAME.match(value) is None or value == OTHERS:
                raise _bad_line(
                    line, f"must give name as 1 to 32 letters, digits, points, dashes or underscores, but not '{OTHERS}'"
                )
            given = value
            continue
        least, most = _BOUNDS[name]
        if not (value.isascii() and _NUMBER.match(value) and least <= int(value) <= most):
            raise _bad_line(line, f"must give {name} as a whole number from {least:,} to {most:,}")
        numbers[name] = int(value)
    return KeyRules(**numbers, name=given)


def _bad_line(number: int, problem: str) -> HeadraceError:
    return HeadraceError("invalid_setting", f"line {number} of the key file {problem}", param="api_key_file")


def tenant_name(key: str) -> str:
    """A name for whoever holds this key: the same for ever, different for every key, and of no use to find the key."""
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"headrace tenant").hexdigest()


def presented_key(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The key a request carries as ``Authorization: Bearer KEY`` or ``x-api-key: KEY``, or ``None``; two of one count as none.

    Clients of the Messages API send the second; where both are there, the first counts.
    """
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        keys = [value.decode("latin-1").strip() for name, value in headers if name == b"x-api-key"]
        return keys[0] or None if len(keys) == 1 else None
    if len(values) != 1:
        return None
    scheme, _, key = values[0].decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def check_key(path: str, headers: list[tuple[bytes, bytes]], keys: KeyRing | None, open_paths: frozenset[str] = OPEN_PATHS) -> None:
    """Raise ``invalid_api_key`` unless the route is open, no keys are set, or the request carries one of them."""
    if keys is None or path in open_paths:
        return
    key = presented_key(headers)
    if key is None:
        raise HeadraceError("invalid_api_key", "An API key is required: send the header 'Authorization: Bearer KEY'.")
    if not keys.admits(key):
        raise HeadraceError("invalid_api_key", "The API key is not known to this server.")


def tenant_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The name of whoever carries this key; empty without one."""
    key = presented_key(headers)
    return tenant_name(key) if key is not None else ""


def check_browser(headers: list[tuple[bytes, bytes]], host: str) -> None:
    """Keep web pages out of a keyless server on a loopback address.

    A page in the user's browser can reach 127.0.0.1, directly or by rebinding its own name to it; then Origin or Host
    carries the page's name. Raises ``permission_denied``.
    """
    if not is_local(host):
        return
    for name, value in headers:
        text = value.decode("latin-1")
        if name == b"origin" and not is_local(_hostname(text if "//" in text else f"//{text}")):
            raise HeadraceError("permission_denied", "Web pages of other origins may not call this server.")
        if name == b"host" and not is_local(_hostname(f"//{text}")):
            raise HeadraceError("permission_denied", "The Host header must name this machine; set an API key to serve other names.")


def is_local(host: str) -> bool:
    """True for names and addresses of this machine's loopback."""
    if host in ("localhost", "") or host.endswith(".localhost"):
        return bool(host)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
