"""A headrace server of an experiment's own, and calls to it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headrace.evaluation.contestants import free_port, running, serve_command


@contextmanager
def own_server(models: Sequence[str], threads: int | None, *options: str) -> Iterator[str]:
    """Its address, once it is ready; it ends with the block. ``models`` as ``--model`` takes them."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running("headrace", serve_command(port, models, threads, *options), url):
        yield url


def post_json(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a call. Raises ``urllib.error.URLError``."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def get_text(url: str, path: str) -> str:
    """A page of the server. Raises ``urllib.error.URLError``."""
    with urllib.request.urlopen(url + path, timeout=30) as answer:
        text: str = answer.read().decode()
    return text
