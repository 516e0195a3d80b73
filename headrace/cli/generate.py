"""``headrace generate``: complete one prompt in this process."""

from __future__ import annotations

import sys

import click

from headrace.cli.arguments import arguments
from headrace.cli.local import SamplingArguments, open_llm
from headrace.cli.options import LOCAL_SETTINGS, settings_options
from headrace.errors import HeadraceError
from headrace.settings.sources import Effective


@click.command()
@click.argument("prompt")
@arguments(SamplingArguments)
@settings_options(*LOCAL_SETTINGS)
def generate(effective: Effective, sampling: SamplingArguments, prompt: str) -> None:
    """Continue PROMPT (`-` reads it from stdin) and print the text as it comes; nothing to start first.

    \b
    headrace generate "The capital of France is"
    headrace generate --max-tokens 200 --temperature 0.8 --top-p 0.9 "Once upon a time"
    cat letter.txt | headrace generate --model gemma-3-270m -
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise HeadraceError("invalid_value", "the prompt is empty", param="prompt")
    with open_llm(effective) as llm:
        for piece in llm.stream(text, sampling.params()):
            click.echo(piece, nl=False)
            sys.stdout.flush()
    click.echo()
