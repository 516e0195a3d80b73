"""Responses that clients may come back to: each its owner's alone, the oldest going first."""

from __future__ import annotations

import time
from collections import OrderedDict

import msgspec

from headrace.errors import HeadraceError
from headrace.server.protocol.responses import KeptItem, ResponseObject
from headrace.server.storage.disk import Scribe
from headrace.server.storage.folder import StateFolder
from headrace.server.storage.records import Records

MOST_KEPT = 1000
"""Responses of one tenant; one more pushes the oldest out."""

MOST_BYTES = 64 << 20
"""What the responses of one tenant may take together, on the disk and about as much in memory; the oldest make room."""

LIFETIME = 30 * 86_400
"""Seconds that a response is kept."""

ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})


class KeptResponse(msgspec.Struct, frozen=True):
    """A response with what was said to it (``own``) and before it (``past``)."""

    response: ResponseObject
    tenant: str
    past: list[KeptItem]
    own: list[KeptItem]


class ResponseStore:
    """All kept responses. Only the event loop touches its tables."""

    def __init__(self, folder: StateFolder, scribe: Scribe) -> None:
        self._scribe = scribe
        self._records = Records(folder.room("responses"), KeptResponse)
        found = sorted(self._records.read().values(), key=lambda kept: (kept.response.created_at, kept.response.id))
        self._kept: dict[str, OrderedDict[str, KeptResponse]] = {}
        self._bytes: dict[str, int] = {}  # of each record
        for kept in found:
            self._note(kept, self._records.size(kept.response.id))

    def find(self, response_id: str, tenant: str, param: str = "id") -> KeptResponse:
        """A response of this tenant. Raises ``response_not_found``, also for those of others."""
        kept = self._kept.get(tenant, OrderedDict()).get(response_id)
        if kept is None or kept.response.created_at + LIFETIME < time.time():
            raise HeadraceError("response_not_found", "No response with this id is kept.", param=param)
        return kept

    def unfinished(self) -> list[KeptResponse]:
        """Those that have not ended."""
        return [kept for own in self._kept.values() for kept in own.values() if kept.response.status not in ENDED]

    async def keep(self, kept: KeptResponse) -> None:
        """Keep a response, in place of its earlier state. Raises ``storage_full``."""
        size = await self._scribe.do(lambda: self._records.write(kept.response.id, kept))
        self._note(kept, size)
        for old in self._too_many(kept.tenant):
            await self.delete(old)

    def _note(self, kept: KeptResponse, size: int) -> None:
        self._kept.setdefault(kept.tenant, OrderedDict())[kept.response.id] = kept
        self._bytes[kept.response.id] = size

    def _too_many(self, tenant: str) -> list[KeptResponse]:
        """The oldest that have ended, until what is left is within both bounds; the newest stays whatever its size."""
        own = self._kept.get(tenant, OrderedDict())
        left, size = len(own), sum(self._bytes[name] for name in own)
        found = []
        for kept in list(own.values())[:-1]:
            if left <= MOST_KEPT and size <= MOST_BYTES:
                break
            if kept.response.status in ENDED:
                found.append(kept)
                left, size = left - 1, size - self._bytes[kept.response.id]
        return found

    async def delete(self, kept: KeptResponse) -> None:
        """Keep a response no longer."""
        if self._kept.get(kept.tenant, OrderedDict()).pop(kept.response.id, None) is not None:
            del self._bytes[kept.response.id]
            await self._scribe.do(lambda: self._records.remove(kept.response.id))

    async def sweep(self) -> None:
        """Drop what is too old."""
        now = time.time()
        for own in list(self._kept.values()):
            for kept in [one for one in own.values() if one.response.created_at + LIFETIME < now]:
                await self.delete(kept)
