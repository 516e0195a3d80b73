"""``headrace config``: what would run, and why."""

from __future__ import annotations

import click

from headrace.cli.flags import shown
from headrace.cli.options import SERVE_SETTINGS, settings_options
from headrace.settings.sources import Effective


@click.command()
@click.option("--yaml", "as_yaml", is_flag=True, help="Print a file that --config reads.")
@settings_options(*SERVE_SETTINGS)
def config(effective: Effective, as_yaml: bool) -> None:
    """Print every option as it would be used, and where its value came from.

    \b
    headrace config
    headrace config --yaml > headrace.yaml
    HEADRACE_PORT=9000 headrace config
    """
    if as_yaml:
        import yaml

        values = {o.option.name: list(o.value) if isinstance(o.value, tuple) else o.value for o in effective.origins}
        click.echo(yaml.safe_dump(values, sort_keys=False), nl=False)
        return
    width = max(len(origin.option.name) for origin in effective.origins)
    values_width = max(len(shown(origin.value)) for origin in effective.origins)
    for origin in effective.origins:
        click.echo(f"{origin.option.name:<{width}}  {shown(origin.value):<{values_width}}  {origin.source}")
