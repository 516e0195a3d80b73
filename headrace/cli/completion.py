"""``headrace completion``: what a shell needs to complete verbs, flags and choices."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
VARIABLE = "_HEADRACE_COMPLETE"
"""Set by the shell's script when it asks the command itself what may follow."""


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell; no other program is asked, so it may stand in a shell's start file.

    \b
    eval "$(headrace completion bash)"                                       in ~/.bashrc
    eval "$(headrace completion zsh)"                                        in ~/.zshrc
    headrace completion fish > ~/.config/fish/completions/headrace.fish
    """
    click.echo(script(ctx.find_root().command, shell))


def script(command: click.Command, shell: str) -> str:
    """The script of one of :data:`SHELLS` for the whole command line."""
    asked = SHELLS[shell](command, {}, "headrace", VARIABLE)
    # Not `source()`: for bash that first starts a bash to read its version, which is the slowest part of all.
    return asked.source_template % asked.source_vars()
