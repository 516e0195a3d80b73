"""``headrace adapters``: the low-rank adapters of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from headrace.cli.output import stdout, table
from headrace.cli.remote import Remote, with_server
from headrace.errors import HeadraceError

_MODEL = click.option("--model", metavar="NAME", help="The base model, where the server has several.")


@click.group()
def adapters() -> None:
    """See and change the adapters of a running server; they are called by name, like models.

    \b
    headrace serve --adapter-dir ./adapters      every sub-folder that holds an adapter is served
    headrace adapters list                       what is there, and in which state
    headrace adapters add poet ./adapters/poet   one more name, or a new content (--replace)
    headrace adapters remove poet                requests under way keep it
    curl … -d '{"model": "poet", …}'             a request that uses it
    """


@adapters.command("list")
@with_server
def list_adapters(remote: Remote) -> None:
    """List all adapters with their base model, generation and state.

    \b
    headrace adapters list
    headrace adapters list --url http://127.0.0.1:9000

    States: waiting (for its model, or to be checked), registered (on disk), loading, resident (in pages), pinned (in use, or
    for good), failed (and why).
    """
    cards = [card for card in remote.get("/models").get("data", []) if card.get("parent")]
    names = ("name", "model", "generation", "state", "rank", "size", "requests", "folder, or why it failed")
    stdout().print(table("", names, map(_row, cards), left=8))


@adapters.command()
@click.argument("name")
@with_server
def show(name: str, remote: Remote) -> None:
    """Describe one adapter: NAME, or MODEL:NAME.

    \b
    headrace adapters show poet
    headrace adapters show smollm2:poet
    """
    card = remote.get(f"/models/{quote(name, safe=':')}")
    if not card.get("parent"):
        raise HeadraceError("adapter_not_found", f"{name!r} is a model; `headrace ps` shows it", param="name")
    _describe(card)


@adapters.command()
@click.argument("name")
@click.argument("folder")
@click.option("--pin", is_flag=True, help="Keep it in memory.")
@click.option("--replace", type=int, metavar="GENERATION", help="The generation that has the name now and gives it up.")
@_MODEL
@with_server
def add(name: str, folder: str, pin: bool, replace: int | None, model: str | None, remote: Remote) -> None:
    """Serve the adapter in FOLDER as NAME.

    \b
    headrace adapters add poet ./adapters/poet
    headrace adapters add poet poet-v2 --replace 3     a path below the server's --adapter-dir
    headrace adapters add poet ./adapters/poet --pin   and keep it in memory

    FOLDER must lie below an --adapter-dir of the server; one that exists here is sent as its absolute path. Files are checked
    before the name is given: what is wrong with them is said in one line, and nothing has changed.
    """
    here = Path(folder).expanduser()
    body: dict[str, Any] = {"lora_name": name, "lora_path": str(here.resolve()) if here.is_dir() else folder, "pin": pin}
    body |= {} if replace is None else {"expected_generation": replace}
    _describe(remote.post("/load_lora_adapter", body | ({"model": model} if model else {})))


@adapters.command()
@click.argument("name")
@click.option("--generation", type=int, metavar="GENERATION", help="Only if this generation has the name.")
@_MODEL
@with_server
def remove(name: str, generation: int | None, model: str | None, remote: Remote) -> None:
    """Take an adapter out. New requests for it are refused; those under way keep it.

    \b
    headrace adapters remove poet
    headrace adapters remove poet --generation 3

    A folder below --adapter-dir stays out until its files change.
    """
    body: dict[str, Any] = {"lora_name": name} | ({} if generation is None else {"expected_generation": generation})
    card = remote.post("/unload_lora_adapter", body | ({"model": model} if model else {}))
    stdout().print(f"{card.get('id')} (generation {card.get('generation')}) is no longer served", markup=False)


def _row(card: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(card["id"]), str(card["parent"]), str(card.get("generation", "")), _state(card), str(card.get("rank", "")), _size(card),
        str(card.get("in_use", "")), str(card.get("error") or card.get("root", "")),
    )  # fmt: skip


def _describe(card: dict[str, Any]) -> None:
    facts = {
        "name": str(card["id"]), "model": str(card["parent"]), "generation": str(card.get("generation", "")),
        "state": _state(card), "folder": str(card.get("root", "")), "rank": str(card.get("rank", "")),
        "modules": " ".join(card.get("modules") or ()), "size in pages": _size(card), "requests": str(card.get("in_use", "")),
    }  # fmt: skip
    facts |= {"error": str(card["error"])} if card.get("error") else {}
    stdout().print(table("", ("", ""), facts.items(), left=2))


def _state(card: dict[str, Any]) -> str:
    kept = card.get("pinned") and card.get("state") != "pinned"
    return f"{card.get('state', '')}{', kept' if kept else ''}"


def _size(card: dict[str, Any]) -> str:
    return f"{card['bytes'] / 2**20:,.1f} MiB" if isinstance(card.get("bytes"), int) else ""
