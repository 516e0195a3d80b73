"""Rows of integer codes as bytes: the encodings ``INT8`` and ``INT4G32``, ``INT4G64``, ``INT4G128``.

The bits of the activations that they are multiplied with belong to the kind's name: ``INT4G64A8``, ``INT8A16``, …

::

    INT8      [float32 channel scale][int8 code of each input]
    INT4G<g>  [float32 channel scale] then per group of g inputs (the last may be shorter, a multiple of 32)
              [uint8 scale][int16 zero][nibbles, the low one is the even input]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GROUPS = (32, 64, 128)
ACTIVATION_BITS = (8, 16)

Bytes = npt.NDArray[np.uint8]


def kind_name(group: int, activation_bits: int) -> str:
    """The kind of 4-bit codes in groups, or (group 0) of 8-bit codes."""
    return f"INT4G{group}A{activation_bits}" if group else f"INT8A{activation_bits}"


GROUP_OF_KIND = {kind_name(group, bits): group for group in (0, *GROUPS) for bits in ACTIVATION_BITS}


def encode_nibbles(codes: Bytes, scales: Bytes, zeros: npt.NDArray[np.int16], group: int) -> Bytes:
    """Groups of packed nibbles [N, K/2] with their scales and zeros [N, ceil(K/group)] as bytes [N, …]."""
    rows, half = len(codes), group // 2
    whole = codes.shape[1] // half
    wide = np.ascontiguousarray(zeros, "<i2").view(np.uint8).reshape(rows, -1, 2)
    full = (scales[:, :whole, None], wide[:, :whole], codes[:, : whole * half].reshape(rows, whole, half))
    parts = [np.concatenate(full, axis=2).reshape(rows, -1)]
    if codes.shape[1] % half:
        parts += [scales[:, whole:], wide[:, whole], codes[:, whole * half :]]
    return np.concatenate(parts, axis=1)


def nibble_integers(codes: Bytes, scales: Bytes, zeros: npt.NDArray[np.int16], group: int) -> npt.NDArray[np.int32]:
    """code · scale − zero of every input: [N, K]."""
    wide = np.stack((codes & 15, codes >> 4), axis=2).reshape(len(codes), -1).astype(np.int32)
    inputs = wide.shape[1]
    wide *= np.repeat(scales.astype(np.int32), group, axis=1)[:, :inputs]
    wide -= np.repeat(zeros.astype(np.int32), group, axis=1)[:, :inputs]
    return wide


def decode_rows(kind: str, rows: Bytes, inputs: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Integer weights [N, inputs] and channel scales [N] of encoded rows [N, row bytes]; their product is the value."""
    scales = np.ascontiguousarray(rows[:, :4]).view("<f4").reshape(-1).astype(np.float32)
    body, group = rows[:, 4:], GROUP_OF_KIND[kind]
    if not group:
        return body.view(np.int8).astype(np.int32), scales
    count = -(-inputs // group)
    starts = np.arange(count) * (3 + group // 2)
    zeros = np.ascontiguousarray(np.stack((body[:, starts + 1], body[:, starts + 2]), axis=2)).view("<i2")
    places = np.arange(inputs // 2)
    codes = body[:, places + 3 * (places // (group // 2) + 1)]
    return nibble_integers(codes, body[:, starts], zeros.reshape(len(rows), count).astype(np.int16), group), scales


def sample_rows(kind: str, rows: int, inputs: int, rng: np.random.Generator) -> Bytes:
    """Random rows [rows · row bytes] of that kind whose products stay inside 32 bits: for measurements."""
    made = rng.integers(0, 256, (rows, row_bytes(kind, inputs)), dtype=np.uint8)
    made[:, :4] = np.frombuffer(np.float32(1e-3).tobytes(), np.uint8)
    group = GROUP_OF_KIND[kind]
    if group:
        starts = 4 + np.arange(-(-inputs // group)) * (3 + group // 2)
        made[:, starts] %= 17  # as of codes whose products with their scale are bytes
        made[:, starts + 1] %= 128
        made[:, starts + 2] = 0
    return made.reshape(-1)


def row_bytes(kind: str, inputs: int) -> int:
    """Encoded bytes of one row."""
    group = GROUP_OF_KIND[kind]
    return 4 + (inputs if not group else inputs // 2 + 3 * -(-inputs // group))
