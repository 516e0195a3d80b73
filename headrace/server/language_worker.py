"""The process that holds one model's tokenizer where a server has several models.

Making a tokenizer of 262,144 tokens holds the interpreter for seconds, and no stream of any other model could be written meanwhile.
So the server (:mod:`headrace.server.language_process`) has it made and asked here. Started with a socket and a model's name, it
says once what the model's text side needs to know, and then answers texts with token ids until the other end closes.

Frames are a 4-byte little-endian length and the bytes. The first frames sent are :class:`Facts` as JSON and the vocabulary
(:func:`~headrace.text.packed_tokens.pack_tokens`). A call is one byte (:data:`SPANS`, :data:`INNER`) and UTF-8; its answer ids as
uint32, and with ``SPANS`` all starts and all ends behind them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.text.encoder import Encoder

SPANS = 1
INNER = 2
MAX_FRAME_BYTES = 1 << 28


class Facts(msgspec.Struct, omit_defaults=True):
    """What the server must know of a tokenizer that it does not have; with ``error`` (code and message) there is none.

    ``specials``: text, id, lstrip, rstrip. ``longest``: most bytes that a token stands for.
    """

    specials: list[tuple[str, int, bool, bool]] = []
    literals: list[int] = []
    byte_pieces: list[int] = []
    byte_level: bool = False
    bos_id: int | None = None
    eos_ids: list[int] = []
    add_bos: bool = False
    end_id: int | None = None
    add_space_prefix: bool = False
    space_mark_is_space: bool = False
    has_inner: bool = False
    tokenizer_template: str | None = None
    chat_template: str | None = None
    context_length: int = 0
    makes_vectors: bool = False
    longest: int = 1
    error: tuple[str, str] | None = None


def send_frame(connection: socket.socket, data: bytes) -> None:
    """One frame. Raises ``OSError`` when the other end is gone or late."""
    connection.sendall(len(data).to_bytes(4, "little") + data)


def receive_frame(connection: socket.socket) -> bytes:
    """One frame. Raises ``OSError`` when the other end is gone, late, or sends a length that is none."""
    size = int.from_bytes(_exactly(connection, 4), "little")
    if size > MAX_FRAME_BYTES:
        raise ConnectionError(f"a frame of {size} bytes")
    return bytes(_exactly(connection, size))


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise ConnectionError("the other end is gone")
        view = view[count:]
    return data


def _open(connection: socket.socket, model: str) -> tuple[Encoder, Encoder]:
    from headrace.models.catalog import find_model, open_model
    from headrace.text.open_tokenizer import open_tokenizer
    from headrace.text.packed_tokens import pack_tokens

    opened = open_model(find_model(model))
    tokenizer = open_tokenizer(opened.tokenizer_source)
    parts = tokenizer.parts
    facts = Facts(
        specials=[(special.text, special.token_id, special.lstrip, special.rstrip) for special in parts.specials],
        literals=sorted(parts.literals),
        byte_pieces=sorted(parts.byte_pieces),
        byte_level=parts.byte_level,
        bos_id=parts.bos_id,
        eos_ids=list(parts.eos_ids),
        add_bos=parts.add_bos,
        end_id=parts.end_id,
        add_space_prefix=parts.add_space_prefix,
        space_mark_is_space=parts.space_mark_is_space,
        has_inner=parts.inner_encoder is not None,
        tokenizer_template=parts.chat_template,
        chat_template=opened.chat_template,
        context_length=opened.config.context_length,
        makes_vectors=opened.config.pooling is not None,
        longest=tokenizer.longest_token(),
    )
    send_frame(connection, msgspec.json.encode(facts))
    send_frame(connection, pack_tokens(parts.tokens))
    return parts.encoder, parts.inner_encoder or parts.encoder


def _answer(call: bytes, encoders: tuple[Encoder, Encoder]) -> bytes:
    encoder = encoders[bool(call[0] & INNER)]
    text = call[1:].decode("utf-8")
    if not call[0] & SPANS:
        return np.array(encoder.ids(text), np.uint32).tobytes()
    found = encoder.spans(text)
    bounds = np.array(found.offsets, np.uint32).reshape(-1, 2).T
    return np.array(found.ids, np.uint32).tobytes() + bounds.tobytes()


def serve(connection: socket.socket, model: str) -> None:
    """Open the model's tokenizer, say how that went, and answer calls until the other end closes."""
    try:
        try:
            encoders = _open(connection, model)
        except HeadraceError as error:
            send_frame(connection, msgspec.json.encode(Facts(error=(error.code, error.message))))
            return
        while True:
            send_frame(connection, _answer(receive_frame(connection), encoders))
    except ConnectionError:
        return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everybody; the server decides when this ends
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
