"""What a quantisation has done so far, kept in its output folder, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.quantization.grid import Float32, Grid
from headrace.quantization.layers import Codes, RoundedLayer

FOLDER_NAME = ".unfinished"
_JOB = "job.json"
_STREAM = "stream.npz"
_PARTS = ("codes", "channel_scales", "scales", "zeros")

Array = npt.NDArray[np.generic]


class Checkpoint:
    """Finished layers and the residual stream behind the last of them, each file whole or absent.

    ``folder``: the output folder, which must be empty, absent, or hold the unfinished work of the same ``job`` (everything
    that the result depends on). Raises ``invalid_setting`` otherwise.
    """

    def __init__(self, folder: Path, job: Mapping[str, str]) -> None:
        self._folder = folder / FOLDER_NAME
        check_output(folder)
        text = json.dumps(dict(job), indent=1, sort_keys=True)
        try:
            if self._folder.is_dir() and (self._folder / _JOB).is_file():
                self._compare((self._folder / _JOB).read_text(encoding="utf-8"), job)
            else:
                self._folder.mkdir(parents=True, exist_ok=True)
                (self._folder / _JOB).write_text(text, encoding="utf-8")
        except OSError as error:
            raise HeadraceError("invalid_setting", f"out: {folder} can't be written: {error.strerror}", param="out") from error

    def layer(self, index: int) -> RoundedLayer | None:
        """A finished layer, or ``None``."""
        arrays = self._load(f"layer_{index:04}.npz")
        return None if arrays is None else _unpack(arrays)

    def stream(self, index: int) -> Float32 | None:
        """The stream behind layer ``index`` - 1, when that is what was kept last."""
        arrays = self._load(_STREAM)
        if arrays is None or int(arrays["layer"]) != index:
            return None
        return np.asarray(arrays["stream"], np.float32)

    def save(self, index: int, layer: RoundedLayer, stream: Float32 | None) -> None:
        """Keep layer ``index`` and the stream behind it (``None``: this recipe needs none)."""
        self._store(f"layer_{index:04}.npz", _pack(layer))
        if stream is not None:
            self._store(_STREAM, {"stream": stream, "layer": np.asarray(index + 1)})

    def discard(self) -> None:
        """Forget everything: the result stands in the folder."""
        shutil.rmtree(self._folder)

    def _compare(self, text: str, job: Mapping[str, str]) -> None:
        try:
            before = json.loads(text)
        except ValueError:
            before = {}
        for name, value in job.items():
            if not isinstance(before, dict) or before.get(name) != value:
                raise HeadraceError(
                    "invalid_setting",
                    f"out: the folder holds an unfinished quantisation with another {name};"
                    " call again as then, give another folder, or remove this one",
                    param="out",
                )

    def _store(self, name: str, arrays: Mapping[str, Array]) -> None:
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=f".{name}.", delete=False) as made:
            try:
                np.savez(made, allow_pickle=False, **dict(arrays))
                made.flush()
                os.replace(made.name, self._folder / name)
            finally:
                Path(made.name).unlink(missing_ok=True)

    def _load(self, name: str) -> dict[str, Array] | None:
        try:
            with (self._folder / name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except FileNotFoundError:
            return None
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            message = f"out: {FOLDER_NAME}/{name} is damaged; remove {FOLDER_NAME} to begin anew"
            raise HeadraceError("invalid_setting", message, param="out") from error


def check_output(folder: Path) -> None:
    """Refuse an output folder that holds anything but unfinished work."""
    if folder.exists() and not folder.is_dir():
        raise HeadraceError("invalid_setting", f"out: {folder} is a file, a folder is needed", param="out")
    others = [path.name for path in folder.iterdir() if path.name != FOLDER_NAME] if folder.is_dir() else []
    if others:
        raise HeadraceError(
            "invalid_setting", f"out: {folder} is not empty (it holds {sorted(others)[0][:64]!r}); give a new folder", param="out"
        )


def _pack(layer: RoundedLayer) -> dict[str, Array]:
    arrays: dict[str, Array] = {f"vector/{name}": values for name, values in layer.vectors.items()}
    for name, matrix in layer.matrices.items():
        grid = matrix.grid
        arrays[f"codes/{name}"], arrays[f"channel_scales/{name}"] = matrix.codes.astype(np.int8), grid.channel_scales
        if grid.scales is not None and grid.zeros is not None:
            arrays |= {f"scales/{name}": grid.scales, f"zeros/{name}": grid.zeros, f"group/{name}": np.asarray(grid.group)}
    return arrays


def _unpack(arrays: Mapping[str, Array]) -> RoundedLayer:
    of: dict[str, dict[str, Array]] = {part: {} for part in ("vector", "group", *_PARTS)}
    for key, values in arrays.items():
        part, name = key.split("/", 1)
        of[part][name] = values
    matrices = {}
    for name, codes in of["codes"].items():
        scale = np.asarray(of["channel_scales"][name], np.float32)
        grid = Grid(scale)
        if name in of["scales"]:
            levels = np.asarray(of["scales"][name], np.int32), np.asarray(of["zeros"][name], np.int32)
            grid = Grid(scale, *levels, int(of["group"][name]))
        matrices[name] = Codes(codes.astype(np.int32), grid)
    return RoundedLayer(matrices, {name: np.asarray(values, np.float32) for name, values in of["vector"].items()})
