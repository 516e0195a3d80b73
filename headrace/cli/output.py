"""Tables, progress bars and JSON files, the same for every verb."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from headrace.errors import HeadraceError

_PIPED_WIDTH = 160


def stdout() -> Console:
    """Where results go."""
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    return Console(highlight=False, width=width)


def stderr() -> Console:
    """Where progress and notes go, so that results can be piped."""
    return Console(stderr=True, highlight=False)


def progress_bar() -> Progress:
    """A bar on stderr that disappears when it is done; nothing at all when stderr is no terminal."""
    console = stderr()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], left: int = 1) -> Table:
    """A plain table; cells are text as it is, without markup; the first ``left`` columns are text, the others numbers."""
    made = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, min_width=len(title))
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def number(value: float) -> str:
    """Three significant digits, thousands separated; a dash for what could not be measured."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def write_json(file: Path, document: Any) -> None:
    """Write a result file. Raises ``invalid_setting`` when the place can't be written."""
    try:
        file.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise HeadraceError("invalid_setting", f"can't write {file}: {error.strerror}", param="json") from None
    click.echo(f"wrote {file}", err=True)
