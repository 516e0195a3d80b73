"""The doctor in the console: what the running server shows, and what `headrace doctor` says of the machine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from headrace.server.auth import is_local
from headrace.server.protocol.console import FindingNow
from headrace.server.served_model import ServedModel

if TYPE_CHECKING:
    from headrace.server.hub import Hub

PATIENCE = 60.0
REST_SECONDS = 30.0
_LATE_SECONDS = 0.05
_FULL = 0.95
_MOST_BYTES = 1 << 20
_decode = msgspec.json.Decoder(list[FindingNow]).decode


def live_findings(hub: Hub) -> list[FindingNow]:
    """What the server's own numbers say, worst first."""
    found = [*_server(hub), *(finding for model in hub.table for finding in _model(model))]
    return sorted(found, key=lambda finding: ("bad", "note", "ok").index(finding.state))


def _server(hub: Hub) -> Iterator[FindingNow]:
    settings = hub.settings
    local = is_local(settings.host)
    if settings.api_key_file is not None:
        yield FindingNow("ok", "who may call", f"holders of {len(hub.tenants.rules):,} API keys")
    else:
        advice = "" if local else "give keys (--api-key-file), or listen on 127.0.0.1"
        yield FindingNow("ok" if local else "note", "who may call", "whoever reaches the port, without a key", advice)
    late = hub.lag.worst()
    advice = "the machine has more work than cores: fewer --threads leave the server room" if late > _LATE_SECONDS else ""
    yield FindingNow("note" if advice else "ok", "event loop", f"at most {late * 1e3:.0f} ms late just now", advice)
    if hub.draining:
        yield FindingNow("note", "life", "draining: nothing new is taken")


def _model(model: ServedModel) -> Iterator[FindingNow]:
    what = f"model {model.name}"
    if model.error is not None:
        yield FindingNow("bad", what, model.error.message, "see the server's log; the next request tries again")
        return
    if model.counts.crashes:
        yield FindingNow("bad", what, f"its engine ended by itself {model.counts.crashes} times", "the server's log says why")
    gauges = model.gauges()
    if model.state != "hot" or not gauges.pages_total:
        found = "in memory, and no step yet" if model.state == "hot" else f"{model.state}; it is in memory when a request wants it"
        yield FindingNow("ok", what, found)
        return
    used = 1 - gauges.pages_free / gauges.pages_total
    full = used > _FULL and gauges.waiting > 0
    advice = f"{gauges.waiting} wait for pages: more --pool-mib, or fewer bits for them (--kv kv8)" if full else ""
    yield FindingNow("note" if full else "ok", what, f"{used:.0%} of {gauges.pages_total:,} pages are held", advice)
    if gauges.preemptions:
        found = f"{gauges.preemptions:,} requests gave way, {gauges.recomputed_tokens:,} tokens were computed again"
        often = gauges.recomputed_tokens > 0.05 * max(1, gauges.prompt_tokens + gauges.generated_tokens)
        yield FindingNow("note" if often else "ok", what, found, "more --pool-mib would spare that" if often else "")
    if gauges.moves is not None and gauges.moves.failures:
        yield FindingNow("note", what, f"{gauges.moves.failures:,} pieces could not be swapped", "look at the disk of --swap-dir")


class MachineDoctor:
    """Asks `headrace doctor` once for all who want to know, and not again within half a minute."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._found: list[FindingNow] = []
        self._again = 0.0

    async def findings(self) -> list[FindingNow]:
        """What it said last."""
        async with self._turn:
            if time.monotonic() >= self._again:
                self._found = await _examine()
                self._again = time.monotonic() + REST_SECONDS
            return self._found


async def _examine() -> list[FindingNow]:
    """In a process of its own: looking at a machine takes time that streams need, and so does starting one on the event loop."""
    command = [sys.executable, "-m", "headrace", "doctor", "--quick", "--json"]
    process = await asyncio.to_thread(
        subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        output, _ = await asyncio.to_thread(process.communicate, None, PATIENCE)
        return _decode(output[:_MOST_BYTES])
    except (subprocess.TimeoutExpired, msgspec.DecodeError):
        return [FindingNow("note", "doctor", "headrace doctor gave no answer", "run it in a terminal")]
    finally:
        if process.poll() is None:
            process.kill()
            await asyncio.to_thread(process.communicate)
