"""Talking to a running server: where it is, with which key, and its refusals as ours."""

from __future__ import annotations

import functools
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from headrace.errors import ERROR_TABLE, HeadraceError

_SECONDS = 60.0
_MOST_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Remote:
    """One server. ``key``: one of its API keys, when it wants one."""

    url: str
    key: str | None = None

    def get(self, path: str) -> dict[str, Any]:
        """The answer to ``GET /v1{path}``. Raises what the server refused, or ``invalid_value`` when none answers."""
        return self._ask(path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to ``POST /v1{path}``. Raises as :meth:`get`."""
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        if not self.url.startswith(("http://", "https://")):
            raise HeadraceError("invalid_value", "url must begin with http:// or https://", param="url")
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        if body is not None:
            headers["content-type"] = "application/json"
        request = urllib.request.Request(f"{self.url.rstrip('/').removesuffix('/v1')}/v1{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                found = json.loads(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, ValueError) as error:
            raise HeadraceError("invalid_value", f"no answer from {self.url}: {error}", param="url") from None
        if not isinstance(found, dict):
            raise HeadraceError("invalid_value", f"{self.url} answers with something else than an object", param="url")
        return found

    def _refused(self, error: urllib.error.HTTPError) -> HeadraceError:
        with error:
            try:
                told = json.loads(error.read(_MOST_BYTES))["error"]
                code, message = str(told["code"]), str(told["message"])
            except (OSError, ValueError, KeyError, TypeError):
                code, message = "invalid_value", f"{self.url} refused: {error.code} {error.reason}"
        return HeadraceError(code if code in ERROR_TABLE else "invalid_value", message)


def with_server(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--url`` and ``--api-key``; the server that they mean comes as ``remote``."""

    @functools.wraps(function)
    def command(*given: Any, url: str, api_key: str | None, **values: Any) -> Any:
        return function(*given, remote=Remote(url, api_key), **values)

    key = click.option("--api-key", envvar="OPENAI_API_KEY", metavar="TEXT", help="A key of the server, if it wants one.")
    where = click.option("--url", default="http://127.0.0.1:8080", metavar="URL", help="The server.", show_default=True)
    wrapped: Callable[..., Any] = where(key(command))
    return wrapped
