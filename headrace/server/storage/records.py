"""Records of one kind, a JSON file each, all of them in memory too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from headrace.server.storage.disk import sync_folder, write_atomically

logger = logging.getLogger("headrace.server.storage")
Record = TypeVar("Record", bound=msgspec.Struct)


class Records(Generic[Record]):
    """A folder of records. Names are made by this server: what a client says is looked up and never made a path."""

    def __init__(self, folder: Path, kind: type[Record]) -> None:
        self._folder = folder
        self._kind = kind

    def read(self) -> dict[str, Record]:
        """All records by name. What a crash left half written goes; a damaged one is set aside and logged."""
        found: dict[str, Record] = {}
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(".") and path.suffix == ".new":
                path.unlink()
            elif path.suffix == ".json":
                try:
                    found[path.stem] = msgspec.json.decode(path.read_bytes(), type=self._kind)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    logger.warning("the record %s is damaged and was set aside: %s", path.name, error)
                    path.rename(path.with_suffix(".damaged"))
        return found

    def write(self, name: str, record: Record) -> int:
        """Keep a record, in place of an earlier one of this name; its bytes. Raises ``storage_full``."""
        data = msgspec.json.encode(record)
        write_atomically(self._folder / f"{name}.json", data)
        return len(data)

    def size(self, name: str) -> int:
        """Bytes of a record."""
        return (self._folder / f"{name}.json").stat().st_size

    def remove(self, name: str) -> None:
        """Forget a record."""
        (self._folder / f"{name}.json").unlink(missing_ok=True)
        sync_folder(self._folder)
