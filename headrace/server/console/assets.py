"""The files of the page, as answers: read once, told apart by their content, and nothing else may run in them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

_TYPES = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml",
}  # fmt: skip
_PREFIX = "/console/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of the page."""

    path: str
    body: bytes
    headers: dict[str, str]

    async def answer(self, request: Request) -> Response:
        """The file, or 304 when the browser has it."""
        request.scope["headrace.route"] = "console"
        if request.headers.get("if-none-match") == self.headers["etag"]:
            return Response(status_code=304, headers=self.headers)
        return Response(self.body, headers=self.headers)


def page_assets() -> list[Asset]:
    """Every file of the page by its path; ``/`` is the page itself."""
    folder = resources.files("headrace.server.console") / "page"
    return [_asset(file.name, file.read_bytes()) for file in sorted(folder.iterdir(), key=lambda file: file.name)]


def _asset(name: str, body: bytes) -> Asset:
    headers = {
        "content-type": _TYPES[name.rsplit(".", 1)[-1]],
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }
    return Asset("/" if name == "index.html" else _PREFIX + name, body, headers)
