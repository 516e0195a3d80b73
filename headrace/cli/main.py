"""The ``headrace`` command: finds the verb, runs it, and turns refusals into one clear line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

import headrace
from headrace.errors import HeadraceError
from headrace.kernels.cpu import require_cpu

# verb → (module, attribute, one line of help). The module is imported only when its verb runs, so `--help` is instant.
VERBS: dict[str, tuple[str, str, str]] = {
    "serve": ("headrace.cli.serve", "serve", "Start the OpenAI-compatible server."),
    "chat": ("headrace.cli.chat", "chat", "Talk to a model, in this process or at --url."),
    "generate": ("headrace.cli.generate", "generate", "Complete one prompt in this process."),
    "list": ("headrace.cli.models", "list_models", "List the models that this machine has."),
    "show": ("headrace.cli.models", "show", "Describe one model."),
    "pull": ("headrace.cli.models", "pull", "Get the package of a model."),
    "ps": ("headrace.cli.ps", "ps", "List the models of a running server and their state."),
    "instances": ("headrace.cli.instances", "instances", "See and change the engine processes of a running server."),
    "instance": ("headrace.cli.instance", "instance", "Run one instance here for a server on another machine."),
    "adapters": ("headrace.cli.adapters", "adapters", "See and change the adapters of a running server."),
    "top": ("headrace.cli.top", "top", "Watch a running server in the terminal."),
    "quantize": ("headrace.cli.quantize", "quantize", "Write a model with integer weights, and say what that costs."),
    "finetune": ("headrace.cli.finetune", "finetune", "Train an adapter on a file of conversations."),
    "bench": ("headrace.cli.bench", "bench", "Measure a server, the engine or the kernels."),
    "plan": ("headrace.cli.plan", "plan", "Find instances, threads and steps that keep your latency promises."),
    "simulate": ("headrace.cli.simulate", "simulate", "Try a dispatch policy on many instances in simulated time."),
    "reproduce": ("headrace.cli.reproduce", "reproduce", "Run an experiment: a mechanism with and without, on this machine."),
    "doctor": ("headrace.cli.doctor", "doctor", "Check this machine and say what to change."),
    "completion": ("headrace.cli.completion", "completion", "Print the completion script of bash, zsh or fish."),
    "config": ("headrace.cli.config", "config", "Print the effective options and where each came from."),
}
_EXAMPLES = """
Examples:

\b
  headrace serve                          serve the bundled model on port 8080
  headrace serve --port 9000 --threads 2
  headrace chat                           talk to it, nothing to start first
  headrace generate "The capital of France is"
  headrace bench serve --rate 2           load any OpenAI-compatible server
  headrace doctor                         is this machine ready?
"""


class LazyGroup(click.Group):
    """A group whose verbs are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order of the table, which is the order of a newcomer's needs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module, or ``None`` when there is no such verb."""
        if cmd_name not in VERBS:
            return None
        require_cpu()
        module, attribute, _ = VERBS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; an unknown one is refused with the nearest name."""
        from headrace.settings.nearest import suggestion

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command '{args[0]}'{suggestion(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs and flags that begin so, without importing a single verb: a shell asks at every touch of the tab key."""
        verbs = [CompletionItem(verb, help=text) for verb, (_, _, text) in VERBS.items() if verb.startswith(incomplete)]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing a single verb."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, _, text) in VERBS.items()])


@click.group(cls=LazyGroup, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(headrace.__version__, prog_name="headrace")
@click.option("--traceback", is_flag=True, help="Where headrace itself has a bug, show where.")
def command(traceback: bool) -> None:
    """One server for models: exact, batched, paged serving on the hardware you have."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a run that failed, 2 a request that can't be honoured, 130 interrupted."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; whatever goes wrong is one line on stderr."""
    try:
        return _run(arguments)
    except HeadraceError as error:
        return _refuse(error.message, 2)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone: give the interpreter something harmless to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--traceback" in arguments[:1]:
            raise
        return _refuse(f"this is a bug ({type(error).__name__}: {error}); `headrace --traceback …` shows where", 1)


def _run(arguments: list[str]) -> int:
    try:
        code = command.main(args=arguments, prog_name="headrace", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.UsageError as error:
        where = f" ({error.ctx.command_path} --help)" if error.ctx is not None else ""
        return _refuse(f"{' '.join(error.format_message().split())}{where}", 2)
    except click.ClickException as error:
        return _refuse(error.format_message(), 2)
    return code if isinstance(code, int) else 0


def _refuse(message: str, code: int) -> int:
    click.echo(f"headrace: {message}", err=True)
    return code
