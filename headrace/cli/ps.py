"""``headrace ps``: the models of a running server."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from headrace.cli.output import stdout, table
from headrace.cli.remote import Remote, with_server


@click.command()
@with_server
def ps(remote: Remote) -> None:
    """List the models of a running server: which are in memory, what each takes, who uses it, and why one failed.

    \b
    headrace ps
    headrace ps --url http://127.0.0.1:9000
    """
    cards = remote.get("/models").get("data", [])
    adapters = Counter(str(card["parent"]) for card in cards if card.get("parent"))
    rows = [
        row
        for card in cards
        if not card.get("parent")
        for row in (_row(card, adapters[str(card.get("id"))]), *_instance_rows(card))
    ]
    names = ("name", "state", "memory", "requests", "idle", "adapters", "what it is, or why it failed")
    stdout().print(table("", names, rows, left=7))


def _row(card: dict[str, Any], adapters: int) -> tuple[str, ...]:
    idle, memory = card.get("idle_seconds"), card.get("memory_bytes") or 0
    state = f"{card.get('state', '')}{', pinned' if card.get('pinned') else ''}"
    return (
        str(card.get("id", "")), state, f"{memory / 2**20:,.0f} MiB" if memory else "", str(card.get("in_use", "")),
        f"{idle:,.0f} s" if isinstance(idle, (int, float)) else "", str(adapters or ""),
        str(card.get("error") or card.get("root", "")),
    )  # fmt: skip


def _instance_rows(card: dict[str, Any]) -> list[tuple[str, ...]]:
    """One line for each engine process of a model that has several."""
    rows: list[tuple[str, ...]] = []
    for one in card.get("instances") or ():
        free, total = one.get("pages_free", 0), one.get("pages_total", 0)
        role = f"{one['role']}, " if one.get("role", "all") != "all" else ""
        crashes = f", {one['crashes']} crashes" if one.get("crashes") else ""
        rows.append(
            (
                f"  instance {one.get('number', '')}", str(one.get("state", "")), f"{total - free} of {total} pages",
                str(one.get("requests", "")), "", "",
                f"{role}process {one.get('pid', '')}, {one.get('threads', '')} threads{crashes}",
            )
        )  # fmt: skip
    return rows
