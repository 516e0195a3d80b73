"""The weights of a folder that was quantised by headrace: matrices of integer codes, vectors in float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from headrace.models.config import ModelConfig
from headrace.models.families import expected_tensors
from headrace.models.files import refuse, release
from headrace.models.integer_rows import kind_name
from headrace.models.quantised_matrix import QuantisationInfo, part_names, read_matrix
from headrace.models.safetensors_file import StoredTensor
from headrace.models.weights import NO_BYTES, RawTensor


class QuantisedWeights:
    """Tensors under canonical names (a :class:`~headrace.models.weights.WeightSource`).

    ``info`` says how they were made. Raises ``model_file`` when a tensor is missing, strange or of another shape than
    ``config`` asks for; the parts of a matrix are checked when it is read.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], config: ModelConfig, info: QuantisationInfo) -> None:
        self.info = info
        self._tensors, self._shapes = tensors, expected_tensors(config)
        known: set[str] = set()
        for name, shape in self._shapes.items():
            if len(shape) == 2:
                known |= part_names(name)
                continue
            known.add(name)
            if name not in tensors or tensors[name].kind != "F32" or tensors[name].shape != shape:
                raise refuse(f"tensor {name!r} must be F32 {list(shape)}")
        strange = sorted(set(tensors) - known)
        if strange:
            raise refuse(f"tensor {strange[0][:128]!r} belongs to no part of this model")

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of all tensors together."""
        return sum(tensor.data.size for tensor in self._tensors.values())

    def names(self) -> Iterable[str]:
        """Canonical names, in the order in which the chain uses them."""
        return self._shapes.keys()

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name: a vector as a view, a matrix encoded row by row."""
        shape = self._shapes.get(name)
        if shape is None:
            raise refuse(f"the model has no tensor {name!r}")
        if len(shape) == 1:
            values = self._tensors[name].data
            if not np.isfinite(values.view(np.float32)).all():
                raise refuse(f"tensor {name!r} has a value that is infinite or not a number")
            return RawTensor("F32", shape, values)
        matrix = read_matrix(name, self._tensors, self.info.form(name))
        if matrix.shape != shape:
            raise refuse(f"quantised matrix {name!r} has shape {matrix.shape}, the model asks for {shape}")
        return matrix.encode()

    def outline(self, name: str) -> RawTensor:
        """The tensor of that name without its bytes."""
        shape, codes = self._shapes.get(name), self._tensors.get(f"{name}.codes")
        if shape is None or len(shape) == 1 or codes is None:
            return replace(self.tensor(name), data=NO_BYTES)
        form = self.info.form(name)
        return RawTensor(kind_name(form.group if codes.kind == "U8" else 0, form.activation_bits), shape, NO_BYTES)

    def release(self) -> None:
        """Take the files' pages out of this process's memory; they come back when they are read."""
        for tensor in self._tensors.values():
            release(tensor.data)
