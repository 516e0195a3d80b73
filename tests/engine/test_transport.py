"""Frames: whatever bytes arrive, the other side gets messages or a FrameError, never anything else."""

from __future__ import annotations

import logging
import socket
import struct

import msgspec
import pytest
from fuzzing import TIMES
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_chain import run, submit, toy_engine

from headrace.engine.process import EngineServer, serve
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.transport import EngineSocket, FrameError, FrameReader, Inbound, Outbound, PeerGone, encode_frame
from headrace.engine.wire import (
    MAX_FRAME_BYTES,
    Cancel,
    Drain,
    EngineInbound,
    Failed,
    Gauges,
    Refused,
    Start,
    StepOutputs,
    Submit,
    TokenLogprob,
    TokenOutput,
)

MESSAGES: list[EngineInbound] = [
    Start(EngineSettings(threads=2)),
    Submit(1, [1, 2, 3], SamplingParams(n=2, logit_bias={5: 1.5}), deadline=2.5),
    Cancel(1),
    Cancel(1, 0),
    Drain(),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.lists(st.integers(1, 40), min_size=1))
def test_messages_survive_any_cut(messages: list[EngineInbound], cuts: list[int]) -> None:
    data = b"".join(encode_frame(message) for message in messages)
    inbound, got, i = Inbound(), [], 0
    while data:
        size = cuts[i % len(cuts)]
        got += inbound.feed(data[:size])
        data, i = data[size:], i + 1
    assert got == messages


def test_outbound_messages_survive() -> None:
    output = TokenOutput(1, 0, [5], [TokenLogprob(5, -0.5, [(5, -0.5), (7, -1.5)])], finish="stop", stop_token=2)
    messages = [StepOutputs([output], Gauges(running=1)), Refused(1, "invalid_value", "no", "prompt"), Failed("model_file", "bad")]
    assert Outbound().feed(b"".join(encode_frame(message) for message in messages)) == messages


@settings(max_examples=300 * TIMES, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_give_messages_or_a_frame_error(data: bytes) -> None:
    for reader in (Inbound(), Outbound()):
        try:
            reader.feed(data)
        except FrameError:
            continue


@settings(max_examples=300 * TIMES, deadline=None)
@given(st.sampled_from(MESSAGES), st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_gives_messages_or_a_frame_error(message: EngineInbound, where: int, value: int) -> None:
    data = bytearray(encode_frame(message))
    data[where % len(data)] = value
    try:
        Inbound().feed(bytes(data))
    except FrameError:
        return


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "unknown"}),
        msgspec.msgpack.encode({"type": "cancel"}),
        msgspec.msgpack.encode({"type": "submit", "request_id": "one", "prompt": [], "params": {}}),
        msgspec.msgpack.encode({"type": "submit", "request_id": 1, "prompt": [1.5], "params": {}}),
        msgspec.msgpack.encode({"type": "submit", "request_id": 1, "prompt": [1], "params": {"temperature": 9.0}}),
        msgspec.msgpack.encode({"type": "submit", "request_id": 1, "prompt": [1], "params": {"no_such": 1}}),
        msgspec.msgpack.encode({"type": "start", "settings": {"threads": -1}}),
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode(StepOutputs([], Gauges())),
        b"\x91" * 100_000,
    ],
)
def test_nonsense_is_a_frame_error(body: bytes) -> None:
    with pytest.raises(FrameError):
        Inbound().feed(struct.pack("<I", len(body)) + body)


def test_oversized_frames_are_refused_before_their_bytes_are_kept() -> None:
    reader = FrameReader(limit=1000)
    with pytest.raises(FrameError, match="over the limit"):
        reader.feed(struct.pack("<I", 1001))
    assert reader.partial <= 4
    with pytest.raises(FrameError):
        Inbound().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))
    with pytest.raises(FrameError):
        encode_frame(Failed("internal_error", "x" * (MAX_FRAME_BYTES + 1)))


def sockets() -> tuple[EngineSocket, socket.socket]:
    ours, theirs = socket.socketpair()
    return EngineSocket(ours, limit=50_000, patience=0.2), theirs


def send_until_given_up(connection: EngineSocket, message: Failed) -> int:
    for _ in range(100):
        connection.send(message)
    return 100


def test_reads_never_block_and_an_end_is_noticed() -> None:
    engine_end, api_end = sockets()
    assert engine_end.receive() == []
    frame = encode_frame(Cancel(7))
    api_end.sendall(frame[:5])
    assert engine_end.receive() == []
    api_end.sendall(frame[5:])
    assert engine_end.receive() == [Cancel(7)]
    api_end.close()
    with pytest.raises(PeerGone):
        engine_end.receive()
    engine_end.close()


def test_a_peer_that_does_not_read_is_buffered_for_and_then_given_up() -> None:
    engine_end, api_end = sockets()
    message = Failed("internal_error", "x" * 50_000)
    sent = 0
    with pytest.raises(PeerGone, match="read nothing"):
        sent = send_until_given_up(engine_end, message)
    assert sent == 0
    api_end.close()
    engine_end.close()


@pytest.mark.parametrize("nonsense", [b"\xff\xff\xff\xff", struct.pack("<I", 3) + b"abc", encode_frame(Drain())])
def test_nonsense_before_the_start_ends_the_process_with_one_line(nonsense: bytes, caplog: pytest.LogCaptureFixture) -> None:
    engine_end, api_end = sockets()
    api_end.sendall(nonsense)
    with caplog.at_level(logging.INFO):
        assert serve(engine_end) == 1
    assert len(caplog.records) == 1
    api_end.close()
    engine_end.close()


def test_nonsense_during_service_ends_it_and_leaves_the_engine_whole() -> None:
    engine = toy_engine()
    submit(engine, 1, [2, 3, 4], SamplingParams(max_tokens=3))
    engine_end, api_end = sockets()
    api_end.sendall(encode_frame(Submit(2, [5, 6], SamplingParams(max_tokens=3))) + encode_frame(Start(EngineSettings())))
    with pytest.raises(FrameError, match="can't be started"):
        EngineServer(engine, engine_end).run()
    engine.check_integrity()
    assert set(run(engine)) == {(1, 0), (2, 0)}
    api_end.close()
    engine_end.close()


def test_draining_finishes_what_runs_and_refuses_the_rest() -> None:
    engine = toy_engine()
    engine_end, api_end = sockets()
    late = Submit(2, [5, 6], SamplingParams())
    wanted = Submit(1, [2, 3], SamplingParams(max_tokens=4, ignore_eos=True))
    api_end.sendall(b"".join(map(encode_frame, (wanted, Drain(), late))))
    EngineServer(engine, engine_end).run()
    engine_end.close()
    messages = Outbound().feed(b"".join(iter(lambda: api_end.recv(65536), b"")))
    refused = [message for message in messages if isinstance(message, Refused)]
    assert [(message.request_id, message.code) for message in refused] == [(2, "draining")]
    outputs = [output for message in messages if isinstance(message, StepOutputs) for output in message.outputs]
    assert sum(len(output.tokens) for output in outputs) == 4
    assert outputs[-1].finish == "length"
    api_end.close()
