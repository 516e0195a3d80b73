"""``headrace serve``: start the server."""

from __future__ import annotations

import click

from headrace.cli.local import prepare
from headrace.cli.options import SERVE_SETTINGS, settings_options
from headrace.engine.settings import ModelSettings
from headrace.errors import HeadraceError
from headrace.settings.sources import Effective


@click.command()
@settings_options(*SERVE_SETTINGS)
def serve(effective: Effective) -> None:
    """Serve models over the OpenAI-compatible HTTP API until SIGTERM or Ctrl-C; running requests may finish.

    \b
    headrace serve
    headrace serve --port 9000 --threads 2 --model gemma-3-270m
    headrace serve --model smollm2 --model gemma-3-270m --pin smollm2 --unload-after 600
    headrace serve --model ./my-model.gguf --served-name mine --api-key-file keys.txt
    HEADRACE_POOL_MIB=512 headrace serve --config headrace.yaml
    """
    from headrace.server.app import run
    from headrace.server.model_names import split_name

    models = effective.of(ModelSettings).model
    for model in models:
        try:
            prepare(split_name(model)[1])
        except HeadraceError:
            if len(models) == 1:
                raise  # one of several fails alone, and says so in the server
    code = run(effective)
    if code:
        raise click.exceptions.Exit(code)
