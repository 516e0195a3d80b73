"""The generated pages of the docs: options, errors, results. ``python -m headrace.cli.documentation docs`` writes them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from prometheus_client import Metric

from headrace.cli.flags import shown
from headrace.cli.options import SERVE_SETTINGS
from headrace.errors import ERROR_TABLE
from headrace.evaluation.results import results_page
from headrace.server.loop_lag import LoopLag
from headrace.server.metrics import Metrics
from headrace.server.protocol.common import IGNORED, UNSUPPORTED
from headrace.server.routes import ENDPOINTS
from headrace.settings.declaration import Option, options_of

_OPTIONS_HEAD = """# Options

Generated from the declarations in the code by `make docs`; don't edit. Every option can be given in three ways, and the later one
wins: a YAML file (`--config headrace.yaml`, or `HEADRACE_CONFIG`), an environment variable, a flag. `headrace config` prints the
effective values with the origin of each; `headrace config --yaml` writes a file to start from. An unknown key, variable or flag
is refused with the nearest valid name.
"""
_ERRORS_HEAD = """# Errors

Generated from `headrace/errors.py` by `make docs`; don't edit. Every refusal of the HTTP API has the OpenAI form
`{"error": {"message", "type", "param", "code"}}` with one of these codes; `param` names the field at fault. After the first byte
of a stream the same object comes as an event, followed by `[DONE]`. On the command line a refusal is one line on stderr and exit
code 2.
"""


def options_page() -> str:
    """The Markdown table of every public option, by room."""
    parts = [_OPTIONS_HEAD]
    for kind in SERVE_SETTINGS:
        parts.append(f"## {kind.__name__.removesuffix('Settings')}\n\n{(kind.__doc__ or '').strip().splitlines()[0]}\n")
        parts.append("| option | default | unit | bounds | what it does | variable |\n| --- | --- | --- | --- | --- | --- |")
        parts.append("\n".join(_option_row(declared) for declared in options_of(kind) if declared.public) + "\n")
    return "\n".join(parts)


def _option_row(declared: Option) -> str:
    help_text = declared.help.replace("|", "\\|")
    cells = f"`{declared.flag}`", shown(declared.default), declared.unit, declared.bounds, help_text, f"`{declared.environment}`"
    return f"| {' | '.join(cells)} |"


def errors_page() -> str:
    """The Markdown table of every error code."""
    rows = ["| code | status | type | meaning | retry after |", "| --- | --- | --- | --- | --- |"]
    for kind in ERROR_TABLE.values():
        retry = f"{kind.retry_after} s" if kind.retry_after is not None else ""
        rows.append(f"| `{kind.code}` | {kind.status} | `{kind.type}` | {kind.meaning} | {retry} |")
    return "\n".join([_ERRORS_HEAD, *rows, ""])


def sections() -> dict[str, str]:
    """Name → Markdown of every generated part of a page that is written by hand otherwise."""
    endpoints = ["| method | path | what it does |", "| --- | --- | --- |"]
    endpoints += [f"| {endpoint.method} | `{endpoint.paths[0]}` | {endpoint.summary} |" for endpoint in ENDPOINTS]
    return {
        "endpoints": "\n".join(endpoints),
        "ignored": _fields(IGNORED),
        "unsupported": _fields(UNSUPPORTED),
        "metrics": "\n".join(["| metric | type | what it is |", "| --- | --- | --- |", *map(_metric_row, metric_families())]),
    }


def metric_families() -> list[Metric]:
    """Every metric of a fresh server, by name."""
    metrics = Metrics((), LoopLag())
    return sorted(metrics.registry.collect(), key=lambda family: family.name)


def _metric_row(family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return f"| `{name}` | {family.type} | {family.documentation} |"


def _fields(table: dict[str, str]) -> str:
    rows = [f"| `{name}` | {text.replace('|', '&#124;')} |" for name, text in sorted(table.items())]
    return "\n".join(["| field | why |", "| --- | --- |", *rows])


def filled(page: str) -> str:
    """A page with each ``<!-- generated: NAME -->`` … ``<!-- end -->`` filled anew. ``KeyError`` for an unknown name."""
    parts = sections()
    pattern = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}\n{parts[match[2]]}\n\n{match[3]}", page)


def pages(root: Path) -> dict[str, str]:
    """File name → content of every generated page; ``root`` is the checkout, for recorded results."""
    return {
        "options.md": options_page(),
        "errors.md": errors_page(),
        "http.md": filled((root / "docs" / "http.md").read_text(encoding="utf-8")),
        "results.md": results_page(root / "benchmarks" / "results"),
    }


def main(folder: Path) -> None:
    """Write all generated pages into the docs folder."""
    for name, content in pages(folder.resolve().parent).items():
        (folder / name).write_text(content, encoding="utf-8")
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
