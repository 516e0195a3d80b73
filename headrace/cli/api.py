"""Calls of a running server from the command line: JSON, files, and its refusals as ours."""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from headrace.errors import HeadraceError

_SECONDS = 60.0
_MOST_BYTES = 1 << 26


class Api:
    """One server. ``url`` with or without ``/v1``. Every call raises ``invalid_value`` with what the server or the network said."""

    def __init__(self, url: str, key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise HeadraceError("invalid_value", "url must begin with http:// or https://", param="url")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> Any:
        """A JSON answer of ``/v1`` + path."""
        return json.loads(self._send(urllib.request.Request(f"{self.url}/v1{path}", headers=self._headers)))

    def post(self, path: str, body: Any) -> Any:
        """Send JSON; the JSON answer."""
        headers = {**self._headers, "content-type": "application/json"}
        return json.loads(self._send(urllib.request.Request(f"{self.url}/v1{path}", json.dumps(body).encode(), headers)))

    def upload(self, path: Path, purpose: str) -> str:
        """Upload a file; its id. Raises ``invalid_value`` when it can't be read."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise HeadraceError("invalid_value", f"can't read {path}: {error.strerror}", param="file") from None
        boundary = secrets.token_hex(16)
        name = path.name.replace('"', "%22").replace("\\", "%5C")
        field = f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        head = f'{field}--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        headers = {**self._headers, "content-type": f"multipart/form-data; boundary={boundary}"}
        answer = json.loads(self._send(urllib.request.Request(f"{self.url}/v1/files", body, headers)))
        return str(answer["id"])

    def _send(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                data: bytes = answer.read(_MOST_BYTES)
                return data
        except urllib.error.HTTPError as error:
            raise HeadraceError("invalid_value", _refusal(error), param="url") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise HeadraceError("invalid_value", f"no answer from {self.url}: {reason}", param="url") from None


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(_MOST_BYTES))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server refused: {error.code} {error.reason}"
