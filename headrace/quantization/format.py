"""Writes the folder of a quantised model: one safetensors file, ``config.json``, and the tokenizer as the source had it.

``headrace serve FOLDER`` opens it as any other model. Matrices are stored under their canonical names (``layer.0.attention.q``)
in parts: ``<name>.codes``, ``.group_scales``, ``.group_zeros``, ``.channel_scales``; vectors under the name alone, as float32
and ready to multiply. Rotary pairs are halves, as :class:`~headrace.models.config.ModelConfig` says.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.models.config import ModelConfig
from headrace.models.config_fields import config_fields
from headrace.models.families import expected_tensors
from headrace.models.gguf_file import open_gguf
from headrace.models.quantised_matrix import METADATA_KEY, MatrixForm, QuantisationInfo, QuantisedMatrix
from headrace.models.safetensors_file import SINGLE_NAME
from headrace.models.safetensors_writer import Array, replace_file, write_safetensors

__all__ = ["METADATA_KEY", "MatrixForm", "QuantisationInfo", "QuantisedMatrix", "copy_tokenizer", "model_digest", "write_model"]

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja",
    "tokenizer.gguf",
)  # fmt: skip


def write_model(
    folder: Path,
    config: ModelConfig,
    info: QuantisationInfo,
    matrices: Sequence[QuantisedMatrix],
    vectors: Mapping[str, npt.NDArray[np.float32]],
) -> None:
    """Write ``config.json`` and ``model.safetensors``, each whole or not at all; :func:`copy_tokenizer` adds the rest.

    ``config``: what the folder shall load as (``tied_head`` false needs a matrix ``head``). ``info.forms`` is made from the
    matrices. Raises ``invalid_value`` when the tensors are not exactly those of ``config``.
    """
    given = {matrix.name: matrix.shape for matrix in matrices} | {name: values.shape for name, values in vectors.items()}
    expected = expected_tensors(config)
    wrong = sorted(name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name))
    if wrong or len(given) != len(matrices) + len(vectors):
        name = wrong[0] if wrong else "a name that is given twice"
        message = f"tensor {name!r} has shape {given.get(name)}, the config asks for {expected.get(name)}"
        raise HeadraceError("invalid_value", message, param="matrices")
    arrays: dict[str, Array] = {name: np.asarray(values, np.float32) for name, values in vectors.items()}
    for matrix in matrices:
        arrays |= matrix.parts()
    forms = {matrix.name: MatrixForm(matrix.group, matrix.activation_bits) for matrix in matrices}
    own = QuantisationInfo(info.method, info.group, info.activation_bits, info.source_digest, forms)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "config.json", json.dumps(config_fields(config), indent=2).encode())
    write_safetensors(folder / SINGLE_NAME, arrays, {METADATA_KEY: own.to_json()})


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Take the tokenizer of ``source`` (a model folder, or a GGUF file: its metadata without tensors) along into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    replace_file(folder / "tokenizer.gguf", open_gguf(source).without_tensors())


def model_digest(source: Path) -> str:
    """SHA-256 in hex of a model's file, or of all safetensors files of its folder in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(source.glob("*.safetensors")) if source.is_dir() else [source]:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
