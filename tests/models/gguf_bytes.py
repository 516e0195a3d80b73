"""GGUF files made by hand for tests, valid or hostile, byte by byte."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
KIND_F32, KIND_Q8_0 = 0, 8


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: object) -> bytes:
    return struct.pack("<I", kind) + (text(value) if isinstance(value, str | bytes) else struct.pack("<" + _CODES[kind], value))


def array(kind: int, values: list[object], count: int | None = None) -> bytes:
    body = b"".join(text(v) if isinstance(v, str | bytes) else struct.pack("<" + _CODES[kind], v) for v in values)
    return struct.pack("<IIQ", ARRAY, kind, len(values) if count is None else count) + body


def tensor(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@dataclass
class GgufBytes:
    """The parts of a file; :meth:`build` joins them, every count can be overridden with a lie."""

    metadata: list[tuple[str, bytes]] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None
    alignment: int = 32

    def build(self) -> bytes:
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        key_count = len(self.metadata) if self.key_count is None else self.key_count
        head = self.magic + struct.pack("<IQQ", self.version, tensor_count, key_count)
        head += b"".join(text(key) + value for key, value in self.metadata) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data


def tiny_llama(**changes: bytes | None) -> GgufBytes:
    """A whole model of one layer: 64 wide, 4 heads of 16 over 2 key heads, 8 tokens. ``changes`` replace metadata values."""
    values: dict[str, bytes] = {
        "general.architecture": scalar(STRING, "llama"),
        "llama.block_count": scalar(U32, 1),
        "llama.context_length": scalar(U32, 128),
        "llama.embedding_length": scalar(U32, 64),
        "llama.feed_forward_length": scalar(U32, 96),
        "llama.attention.head_count": scalar(U32, 4),
        "llama.attention.head_count_kv": scalar(U32, 2),
        "llama.attention.layer_norm_rms_epsilon": scalar(F32, 1e-5),
        "llama.rope.freq_base": scalar(F32, 10000.0),
        "tokenizer.ggml.tokens": array(STRING, ["a", "b", "ä", "\n", "", "c", "d", "end"]),
        "tokenizer.ggml.scores": array(F32, [0.0] * 8),
        "tokenizer.ggml.token_type": array(I32, [1] * 8),
        "tokenizer.ggml.add_bos_token": scalar(BOOL, 1),
        "tokenizer.ggml.eos_token_id": scalar(U32, 7),
    }
    for key, value in changes.items():
        if value is None:
            del values[key]
        else:
            values[key] = value
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (64, 8),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.attn_k.weight": (64, 32),
        "blk.0.attn_v.weight": (64, 32),
        "blk.0.attn_output.weight": (64, 64),
        "blk.0.ffn_norm.weight": (64,),
        "blk.0.ffn_gate.weight": (64, 96),
        "blk.0.ffn_up.weight": (64, 96),
        "blk.0.ffn_down.weight": (96, 64),
        "output_norm.weight": (64,),
    }
    made = GgufBytes(metadata=list(values.items()))
    rng = np.random.default_rng(1)
    for name, dims in shapes.items():
        made.tensors.append(tensor(name, dims, KIND_F32, len(made.data)))
        made.data += rng.standard_normal(int(np.prod(dims)), dtype=np.float32).tobytes()
    return made
