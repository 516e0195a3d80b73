"""Which folders may hold adapters, and what lies in them. Everything here touches the disk: call it on a thread."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.models.adapter_config import ADAPTER_CONFIG
from headrace.models.adapter_file import ADAPTER_WEIGHTS, MAX_CONFIG_BYTES
from headrace.models.files import read_limited
from headrace.models.safetensors_file import parse_json

MOST_PATH = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}\Z")

Signature = tuple[tuple[int, int, int, int], ...]
"""Size, times in ns and number of both files: tells one state of a folder from every other without reading it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an adapter lies. ``shown``: what clients may read of it, its path below the root."""

    folder: Path
    shown: str
    signature: Signature


def check_name(name: str) -> None:
    """Raise ``invalid_value`` for a name that would not go through paths, headers and metrics as it is."""
    if _NAME.match(name) is None:
        message = "an adapter's name begins with a letter or digit and has at most 128 letters, digits and . _ : @ + - in all"
        raise HeadraceError("invalid_value", message, param="lora_name")


def signature_of(folder: Path) -> Signature | None:
    """The state of a folder's files now; ``None`` when it holds no adapter, or not yet."""
    try:
        states = [os.stat(folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    except (OSError, ValueError):
        return None
    return tuple((state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for state in states)


def trusted_place(folder: Path, shown: str) -> Place:
    """The place of an adapter that the server itself has written. Raises ``model_file`` when there is none."""
    signature = signature_of(folder)
    if signature is None:
        raise HeadraceError("model_file", f"{shown!r} holds no adapter: {ADAPTER_CONFIG} beside {ADAPTER_WEIGHTS}")
    return Place(folder, shown, signature)


def base_model_of(folder: Path) -> str:
    """What the adapter's file calls its base model; empty when it doesn't say or can't be read."""
    try:
        name = parse_json(read_limited(folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES), ADAPTER_CONFIG).get("base_model_name_or_path")
    except HeadraceError:
        return ""
    return name[:256] if isinstance(name, str) else ""


class AdapterRoots:
    """The folders of the option ``adapter_dir``; adapters come from below them and from nowhere else."""

    def __init__(self, folders: Sequence[str] = ()) -> None:
        self.roots = tuple(Path(folder).expanduser().resolve() for folder in folders)

    def find(self, path: str) -> Place:
        """The place that a client means: an absolute path, or one below a root.

        What lies outside is refused alike whether it exists or not. Raises ``permission_denied``, ``invalid_value`` or
        ``model_file``.
        """
        if not self.roots:
            message = "This server loads no adapters by path; start it with --adapter-dir FOLDER and put them below that folder."
            raise HeadraceError("permission_denied", message, param="lora_path")
        if not path or "\0" in path or len(path) > MOST_PATH:
            raise HeadraceError("invalid_value", f"lora_path is a path of at most {MOST_PATH} characters", param="lora_path")
        wanted = [Path(path)] if path.startswith("/") else [root / path for root in self.roots]
        allowed = [found for found in map(self._inside, wanted) if found is not None]
        if not allowed:
            message = "lora_path must lie below a folder given by --adapter-dir, links followed."
            raise HeadraceError("permission_denied", message, param="lora_path")
        folder = next((one for one in allowed if signature_of(one) is not None), None)
        if folder is None:
            message = f"lora_path holds no adapter: {ADAPTER_CONFIG} beside {ADAPTER_WEIGHTS}"
            raise HeadraceError("invalid_value", message, param="lora_path")
        self._check_files(folder)
        return trusted_place(folder, self._shown(folder))

    def scan(self) -> Iterator[tuple[str, Path, Signature]]:
        """(name, folder, signature) of each sub-folder that holds an adapter, but for names that begin with a point.

        Of two with one name the first root's counts.
        """
        seen: set[str] = set()
        for root in self.roots:
            try:
                entries = sorted(entry.name for entry in os.scandir(root) if entry.name[0] != "." and entry.is_dir())
            except OSError:
                continue  # a root that is gone for now: whatever it held has gone with it
            for name in entries:
                signature = signature_of(root / name)
                if signature is not None and name not in seen:
                    seen.add(name)
                    yield name, root / name, signature

    def watched_place(self, folder: Path, signature: Signature) -> Place:
        """The place of a sub-folder that :meth:`scan` found. Raises ``permission_denied`` when a link leads out."""
        inside = self._inside(folder)
        if inside is None:
            raise HeadraceError("permission_denied", "the folder is a link that leads out of --adapter-dir")
        self._check_files(inside)
        return Place(inside, self._shown(inside), signature)

    def _inside(self, path: Path) -> Path | None:
        try:
            real = path.resolve()
        except (OSError, RuntimeError):  # a loop of links
            return None
        return real if any(real.is_relative_to(root) for root in self.roots) else None

    def _check_files(self, folder: Path) -> None:
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if self._inside(folder / name) is None:
                message = f"{name} is a link that leads out of --adapter-dir"
                raise HeadraceError("permission_denied", message, param="lora_path")

    def _shown(self, folder: Path) -> str:
        root = next(root for root in self.roots if folder.is_relative_to(root))
        return folder.relative_to(root).as_posix() if folder != root else root.name
