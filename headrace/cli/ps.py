"""``headrace ps``: the models of a running server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import click

from headrace.cli.output import stdout, table
from headrace.errors import HeadraceError

_SECONDS = 10.0
_MOST_BYTES = 1 << 22


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", metavar="URL", help="The server.", show_default=True)
@click.option("--api-key", envvar="OPENAI_API_KEY", metavar="TEXT", help="A key of the server, if it wants one.")
def ps(url: str, api_key: str | None) -> None:
    """List the models of a running server: which are in memory, what each takes, who uses it, and why one failed.

    \b
    headrace ps
    headrace ps --url http://127.0.0.1:9000
    """
    rows = [_row(card) for card in _models(url, api_key)]
    names = ("name", "state", "memory", "requests", "idle", "what it is, or why it failed")
    stdout().print(table("", names, rows, left=6))


def _models(url: str, key: str | None) -> list[dict[str, Any]]:
    if not url.startswith(("http://", "https://")):
        raise HeadraceError("invalid_value", "url must begin with http:// or https://", param="url")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/').removesuffix('/v1')}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            cards: list[dict[str, Any]] = json.loads(answer.read(_MOST_BYTES))["data"]
    except urllib.error.HTTPError as error:
        raise HeadraceError("invalid_value", f"{url} refused: {error.code} {error.reason}", param="url") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HeadraceError("invalid_value", f"no model list from {url}: {error}", param="url") from None
    return cards


def _row(card: dict[str, Any]) -> tuple[str, ...]:
    idle, memory = card.get("idle_seconds"), card.get("memory_bytes") or 0
    state = f"{card.get('state', '')}{', pinned' if card.get('pinned') else ''}"
    return (
        str(card.get("id", "")), state, f"{memory / 2**20:,.0f} MiB" if memory else "", str(card.get("in_use", "")),
        f"{idle:,.0f} s" if isinstance(idle, (int, float)) else "", str(card.get("error") or card.get("root", "")),
    )  # fmt: skip
