"""``headrace instance``: run one instance here for a server on another machine."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import get_args

import click

from headrace.errors import HeadraceError
from headrace.instances.hall_key import KEY_VARIABLE, read_key
from headrace.placement.back_off import BackOff
from headrace.placement.roles import Role


@click.command()
@click.option("--join", "address", required=True, metavar="HOST:PORT", help="Where the server takes instances.")
@click.option("--key-file", type=click.Path(path_type=Path), envvar=KEY_VARIABLE, help=f"The shared key. Or {KEY_VARIABLE}.")
@click.option("--threads", type=click.IntRange(1, 256), help="Compute threads here. Default: as the server is told.")
@click.option("--role", type=click.Choice(get_args(Role)), help="What it takes, as --instances of the server. Default: as there.")
@click.option("--once", is_flag=True, help="Do not join again when the connection ends.")
def instance(address: str, key_file: Path | None, threads: int | None, role: Role | None, once: bool) -> None:
    """Run one engine process on this machine for a server that awaits it, and join again when the connection ends.

    Ends when the server refuses what is installed here (another version, model, weights or page format), or nothing loads.

    \b
    openssl rand -hex 32 > key; chmod 600 key                  (the same file on all machines)
    HEADRACE_INSTANCES_KEY_FILE=key headrace serve --instances join:2@0.0.0.0:7400
    headrace instance --join server:7400 --key-file key        (twice, anywhere)
    """
    from headrace.engine.joining import is_final, join
    from headrace.placement.joining import read_address
    from headrace.settings.log_lines import configure_logs

    where = read_address(address)
    key = read_key(key_file)
    os.environ.pop(KEY_VARIABLE, None)  # engine processes need not know
    configure_logs("text")
    back_off, said = BackOff(in_a_row=1), ""
    while True:
        began = time.monotonic()
        try:
            join(where, key, threads, role)
        except HeadraceError as error:
            if once or is_final(error):
                raise
            if error.message != said:  # the same thing every half minute helps nobody
                logging.getLogger("headrace.instance").warning("%s; trying again", error.message)
            said = error.message
        if once:
            return
        time.sleep(back_off.after(time.monotonic() - began))
