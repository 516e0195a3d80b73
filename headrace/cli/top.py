"""``headrace top``: a running server, live in the terminal."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headrace.cli.output import number, stdout
from headrace.errors import HeadraceError

_SECONDS = 10.0
_MOST_BYTES = 1 << 24
_KINDS = {
    "decode": "cyan",
    "verify": "green",
    "prompt": "blue",
    "train": "magenta",
    "embed": "bright_magenta",
    "recompute": "yellow",
}
_BLOCKS = " ▁▂▃▄▅▆▇█"


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", metavar="URL", help="The server.", show_default=True)
@click.option("--api-key", envvar="OPENAI_API_KEY", metavar="TEXT", help="A key of the server, if it wants one.")
@click.option(
    "--every", type=click.FloatRange(0.2, 60.0), default=1.0, metavar="S", help="Seconds between looks.", show_default=True
)
@click.option("--once", is_flag=True, help="Look for one such time, print that, and end.")
def top(url: str, api_key: str | None, every: float, once: bool) -> None:
    """Watch a running server: tokens a second, steps, pages, models and requests. Ctrl-C ends it.

    \b
    headrace top
    headrace top --url http://127.0.0.1:9000 --every 2
    headrace top --once
    """
    watched = Watched(url, api_key)
    watched.look()
    if once:
        time.sleep(every)
        watched.look()
        stdout().print(watched.picture(40))
        return
    console = Console(highlight=False)
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(watched.picture(console.height), refresh=True)
            time.sleep(every)
            watched.look()


@dataclass
class Watched:
    """A server, as seen at the last two looks."""

    url: str
    key: str | None
    now: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def look(self) -> None:
        """Ask the server. Raises ``invalid_value`` when it can't be had."""
        cursor = self.now.get("cursor", 0)
        self.before = self.now
        self.now = _ask(self.url, f"/console/data?steps=1&requests=100&latencies=1&since={cursor}", self.key)
        if self.before.get("started") != self.now["started"]:
            self.before, self.steps = {}, []
        self.steps = [*self.steps, *self.now["steps"]][-400:]

    def picture(self, height: int) -> RenderableType:
        """All of it, in as many lines as there are."""
        used = 10 + len(self.now["models"])
        return Group(
            self._head(), Text(), *self._steps(), Text(), self._models(), Text(), self._requests(max(3, height - used - 4))
        )

    def _sum(self, data: dict[str, Any], name: str) -> float:
        return float(sum(model["gauges"][name] for model in data["models"]))

    def _rate(self, name: str) -> str:
        if not self.before:
            return "–"
        span = max(self.now["now"] - self.before["now"], 1e-3)
        return f"{number(max(0.0, self._sum(self.now, name) - self._sum(self.before, name)) / span)}/s"

    def _head(self) -> Text:
        now = self.now
        up = int(now["now"] - now["started"])
        head = Text.assemble(
            ("headrace ", "bold cyan"), f"{now['version']}  {self.url}  up {up // 3600}:{up // 60 % 60:02}:{up % 60:02}"
        )
        if now["draining"]:
            head.append("  draining", "yellow")
        facts = (
            ("generated", self._rate("generated_tokens")), ("prompts", self._rate("prompt_tokens")),
            ("running", f"{self._sum(now, 'running'):,}"), ("waiting", f"{self._sum(now, 'waiting'):,}"),
            ("first token", f"{_milliseconds(now, 'first')} ms"), ("next", f"{_milliseconds(now, 'gap')} ms"),
            ("loop late", f"{now['loop_lag_seconds'] * 1e3:.0f} ms"),
        )  # fmt: skip
        head.append("\n")
        for name, value in facts:
            head.append(f"{name} ", "dim").append(f"{value}   ", "bold")
        return head

    def _steps(self) -> list[Text]:
        """The last steps as bars by their rows, the colour that of most of them."""
        shown = self.steps[-72:]
        if not shown:
            return [Text("no step since you came", "dim")]
        most = max(sum(step["rows"].values()) for step in shown)
        bars = Text("steps ", "dim")
        for step in shown:
            rows = sum(step["rows"].values())
            kind = max(step["rows"], key=step["rows"].__getitem__)
            bars.append(_BLOCKS[max(1, round(8 * (rows / most) ** 0.5))], _KINDS.get(kind, "white"))
        last = shown[-1]
        rows_text = ", ".join(f"{count:,} {kind}" for kind, count in last["rows"].items())
        kinds = sorted({kind for step in shown for kind in step["rows"]})
        legend = Text("      ").append(f"last: {rows_text} rows in {last['ms']:.1f} ms   ", "dim")
        for kind in kinds:
            legend.append(f"█ {kind}  ", _KINDS.get(kind, "white"))
        return [bars, legend]

    def _models(self) -> Table:
        made = _table(("model", "state", "requests", "pages held", "for prompts", "free", "pages"), left=2)
        for model in self.now["models"]:
            gauges = model["gauges"]
            total, free, cached = gauges["pages_total"], gauges["pages_free"], gauges["pages_cached"]
            share = (total - free) / total if total else 0.0
            bar = Text("█" * round(share * 16), "cyan").append("░" * (16 - round(share * 16)), "dim")
            numbers = (f"{model['requests']:,}", f"{total - free:,}", f"{cached:,}", f"{free - cached:,}")
            made.add_row(Text(model["name"]), Text(model["state"]), *numbers, bar)
        return made

    def _requests(self, most: int) -> Table:
        made = _table(("request", "model", "key", "state", "prompt", "cached", "tokens", "first", "whole"), left=4)
        for one in self.now["requests"][:most]:
            whole = one["ended"] if one["ended"] is not None else self.now["now"] - one["began"]
            first = f"{one['first'] * 1e3:,.0f} ms" if one["first"] is not None else "–"
            made.add_row(
                Text(one["id"][:12], "cyan"), Text(one["name"]), Text(one["tenant"]), Text(_state(one)),
                f"{one['prompt_tokens']:,}", f"{one['cached_tokens']:,}", f"{one['generated_tokens']:,}", first, f"{whole:.2f} s",
            )  # fmt: skip
        return made


def _table(columns: tuple[str, ...], left: int) -> Table:
    made = Table(box=None, pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    return made


def _state(one: dict[str, Any]) -> str:
    if one["ended"] is not None:
        return ", ".join(sorted(set(one["finish"]))) or "refused"
    return "decoding" if one["first"] is not None else "prompt" if one["chunks"] else "waiting"


def _milliseconds(data: dict[str, Any], kind: str) -> str:
    """The median of the newest minute; a dash when there is none."""
    latencies = data["latencies"]
    counts: dict[int, int] = {}
    for window in latencies["windows"]:
        if window["at"] > data["now"] - 60:
            for bucket, count in window[kind].items():
                counts[int(bucket)] = counts.get(int(bucket), 0) + count
    left = sum(counts.values()) / 2
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 0:
            return number(latencies["least_seconds"] * 10 ** ((bucket + 1) / latencies["per_decade"]) * 1e3)
    return "–"


def _ask(url: str, path: str, key: str | None) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise HeadraceError("invalid_value", "url must begin with http:// or https://", param="url")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/').removesuffix('/v1')}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            data: dict[str, Any] = json.loads(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        hint = "; give --api-key" if error.code == 401 else ""
        raise HeadraceError("invalid_value", f"{url} refused: {error.code} {error.reason}{hint}", param="url") from None
    except (OSError, ValueError) as error:
        raise HeadraceError("invalid_value", f"nothing to watch at {url}: {error}", param="url") from None
    return data
