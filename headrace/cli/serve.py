"""``headrace serve``: start the server."""

from __future__ import annotations

import click

from headrace.cli.local import prepare
from headrace.cli.options import SERVE_SETTINGS, settings_options
from headrace.engine.settings import EngineSettings
from headrace.settings.sources import Effective


@click.command()
@settings_options(*SERVE_SETTINGS)
def serve(effective: Effective) -> None:
    """Serve a model over the OpenAI-compatible HTTP API until SIGTERM or Ctrl-C; running requests may finish.

    \b
    headrace serve
    headrace serve --port 9000 --threads 2 --model gemma-3-270m
    headrace serve --model ./my-model.gguf --served-name mine --api-key-file keys.txt
    HEADRACE_POOL_MIB=512 headrace serve --config headrace.yaml
    """
    from headrace.server.app import run

    prepare(effective.of(EngineSettings).model)
    code = run(effective)
    if code:
        raise click.exceptions.Exit(code)
