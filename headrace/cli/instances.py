"""``headrace instances``: the engine processes of a running server's models."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlencode

import click

from headrace.cli.output import stdout, table
from headrace.cli.remote import Remote, with_server
from headrace.errors import HeadraceError

_LOOK_SECONDS = 0.2
_MODEL = click.option("--model", metavar="NAME", help="The model, where the server has several.")
_WAIT = click.option(
    "--wait", type=click.FloatRange(0, 86_400), default=60.0, metavar="SECONDS", help="Longest wait.", show_default=True
)


@click.group()
def instances() -> None:
    """See and change the engine processes of a running server: what each takes, and which are in use.

    \b
    headrace serve --instances prefill,decode      two, one for prompts and one for tokens
    headrace instances list                        what each does
    headrace instances role 0=decode 1=prefill     other roles, while requests run
    headrace instances drain 1 --stop              its requests move away, and its process ends
    headrace instances undrain 1                   it starts again

    Where the server has keys, an operator's is needed (--api-key).
    """


@instances.command("list")
@_MODEL
@with_server
def list_instances(model: str | None, remote: Remote) -> None:
    """List the engine processes of a model.

    \b
    headrace instances list
    headrace instances list --model gemma-3-270m

    States: loading, serving, leaving (its requests move away), drained (it has none and takes none), waiting (to start again
    after a crash), gone (its process has ended).
    """
    _print(_listed(remote, model))


@instances.command()
@click.argument("changes", nargs=-1, required=True, metavar="NUMBER=ROLE...")
@_MODEL
@with_server
def role(changes: tuple[str, ...], model: str | None, remote: Remote) -> None:
    """Change what instances take, all at once: all, prefill (new requests) or decode (those with a first token).

    \b
    headrace instances role 1=decode
    headrace instances role 0=decode 1=prefill

    Nothing is loaded again, and running requests go on where they now belong, with the same tokens.
    """
    roles: dict[str, str] = {}
    for change in changes:
        number, equals, name = change.partition("=")
        if not equals or not number.isdigit() or number in roles:
            raise HeadraceError(
                "invalid_value", f"'{change}' is not NUMBER=ROLE of another instance, such as 1=decode", param="changes"
            )
        roles[number] = name
    _print(remote.post("/instances/roles", {"roles": roles} | _named(model)))


@instances.command()
@click.argument("number", type=click.IntRange(0, 65_535))
@click.option("--stop", is_flag=True, help="End its process when it is empty.")
@_WAIT
@_MODEL
@with_server
def drain(number: int, stop: bool, wait: float, model: str | None, remote: Remote) -> None:
    """Take instance NUMBER out of use: its requests go on elsewhere, and it gets no new ones.

    \b
    headrace instances drain 1
    headrace instances drain 1 --stop --wait 300
    """
    answer = remote.post("/instances/drain", {"instance": number, "stop": stop} | _named(model))
    _print(_settled(remote, answer, number, ("gone",) if stop else ("drained", "gone"), wait))


@instances.command()
@click.argument("number", type=click.IntRange(0, 65_535))
@_WAIT
@_MODEL
@with_server
def undrain(number: int, wait: float, model: str | None, remote: Remote) -> None:
    """Let instance NUMBER take requests again; one whose process has ended starts.

    \b
    headrace instances undrain 1
    """
    answer = remote.post("/instances/undrain", {"instance": number} | _named(model))
    _print(_settled(remote, answer, number, ("serving",), wait))


def _named(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}


def _listed(remote: Remote, model: str | None) -> dict[str, Any]:
    return remote.get("/instances" + ("" if model is None else "?" + urlencode({"model": model})))


def _settled(remote: Remote, answer: dict[str, Any], number: int, states: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """The list once the instance is in one of these states. Raises ``state_conflict`` when it is not after ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        state = next((one.get("state") for one in answer.get("data", ()) if one.get("number") == number), None)
        if state in states:
            return answer
        if time.monotonic() >= until:
            raise HeadraceError("state_conflict", f"instance {number} is still {state} after {seconds:g} s, and goes on")
        time.sleep(_LOOK_SECONDS)
        answer = _listed(remote, str(answer.get("model")))


def _print(answer: dict[str, Any]) -> None:
    names = ("instance", "role", "state", "requests", "running", "waiting", "pages held", "threads", "process", "crashes")
    stdout().print(table(f"instances of {answer.get('model', '')}", names, map(_row, answer.get("data", ())), left=3))


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    held = one.get("pages_total", 0) - one.get("pages_free", 0)
    values = (one.get(name, "") for name in ("number", "role", "state", "requests", "running", "waiting"))
    return (
        *map(str, values), f"{held:,} of {one.get('pages_total', 0):,}", str(one.get("threads", "")), str(one.get("pid") or ""),
        str(one.get("crashes", "")),
    )  # fmt: skip
