"""Safetensors files written whole or not at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

# numpy knows no bfloat16: its codes travel as 16-bit words.
_KINDS = {"uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "BF16", "float16": "F16", "float32": "F32"}


def write_safetensors(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write ``arrays`` by name (uint16: codes of bfloat16) and the free texts of ``metadata``."""
    # Wide elements first: every array then begins at a multiple of its element.
    ordered = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))
    replace_file(path, _header(ordered, metadata), list(ordered.values()))


def replace_file(path: Path, head: bytes, arrays: Sequence[Array] = ()) -> None:
    """Put a file with these bytes into the place of ``path`` at once; a failure leaves what was there."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as made:
        made_path = Path(made.name)
        try:
            made.write(head)
            for values in arrays:
                made.write(np.ascontiguousarray(values).data)
            made.flush()
            made_path.chmod(0o644)
            made_path.replace(path)
        finally:
            made_path.unlink(missing_ok=True)


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, values in arrays.items():
        end = start + values.nbytes
        entries[name] = {"dtype": _KINDS[values.dtype.name], "shape": list(values.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return len(text).to_bytes(8, "little") + text
