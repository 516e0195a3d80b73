"""Serves a GGUF file with OpenVINO GenAI's continuous batching; see the package's docstring for the arguments.

The package has no HTTP server: this is a thin one around its pipeline, with greedy completions streamed as server-sent events.
Further arguments: ``lookup`` guesses tokens by the pipeline's prompt lookup, ``draft=MODEL.gguf`` by its draft model.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from dataclasses import dataclass
from typing import Any

GUESSED, GRAM = 5, 3
"""Tokens guessed for a step and tokens that must match, as in the package's own examples."""


@dataclass(slots=True)
class _Running:
    """A request inside the pipeline and the queue of its HTTP connection."""

    handle: Any
    pieces: asyncio.Queue[tuple[str, int, bool]]


class Engine:
    """The pipeline in a thread of its own: takes requests, steps, hands text to the event loop once a step."""

    def __init__(self, model: str, threads: int, streams: int, guesses: str, loop: asyncio.AbstractEventLoop) -> None:
        import openvino_genai

        self._genai = openvino_genai
        self._guesses = guesses
        properties = {"INFERENCE_NUM_THREADS": threads}
        if guesses == "lookup":
            properties["prompt_lookup"] = True
        elif guesses:
            properties["draft_model"] = openvino_genai.draft_model(guesses, "CPU", INFERENCE_NUM_THREADS=threads)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = streams
        scheduler.enable_prefix_caching = False
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self._tokenizer = self._pipeline.get_tokenizer()
        self._loop = loop
        self._inbox: list[tuple[Any, Any, asyncio.Queue[tuple[str, int, bool]]]] = []
        self._wake = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, body: dict[str, Any]) -> tuple[int, asyncio.Queue[tuple[str, int, bool]]]:
        """(tokens of the prompt, queue of (text, tokens, whether that is all)); a prompt is a text or a list of token ids."""
        prompt = body["prompt"]
        ids = self._tokenizer.encode(prompt).input_ids if isinstance(prompt, str) else _tensor(prompt)
        queue: asyncio.Queue[tuple[str, int, bool]] = asyncio.Queue()
        with self._wake:
            self._inbox.append((ids, self._config(body), queue))
            self._wake.notify()
        return int(ids.shape[1]), queue

    def _config(self, body: dict[str, Any]) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = body["max_tokens"], body.get("ignore_eos", False), False
        if not config.ignore_eos:
            config.set_eos_token_id(self._tokenizer.get_eos_token_id())
        if self._guesses:
            config.num_assistant_tokens = GUESSED
        if self._guesses == "lookup":
            config.max_ngram_size = GRAM
        return config

    def _run(self) -> None:
        live: dict[int, _Running] = {}
        number = 0
        while True:
            with self._wake:
                while not self._inbox and not live:
                    self._wake.wait()
                taken, self._inbox = self._inbox, []
            for ids, config, queue in taken:
                number += 1
                live[number] = _Running(self._pipeline.add_request(number, ids, config), queue)
            self._pipeline.step()
            self._collect(live)

    def _collect(self, live: dict[int, _Running]) -> None:
        """What the step gave, decoded in one call."""
        found = []
        for number, running in live.items():
            if running.handle.can_read():
                output = next(iter(running.handle.read().values()))
                done = output.finish_reason != self._genai.GenerationFinishReason.NONE
                found.append((number, list(output.generated_ids), done))
        if not found:
            return
        texts = self._tokenizer.decode([ids for _, ids, _ in found])
        pairs = zip(texts, found, strict=True)
        events = [(live[number].pieces, (text or " ", len(ids), done)) for text, (number, ids, done) in pairs]
        for number, _, done in found:
            if done:
                del live[number]
        self._loop.call_soon_threadsafe(_deliver, events)


def _tensor(ids: list[int]) -> Any:
    import numpy
    import openvino

    return openvino.Tensor(numpy.array([ids], numpy.int64))


def _deliver(events: list[tuple[asyncio.Queue[tuple[str, int, bool]], tuple[str, int, bool]]]) -> None:
    for queue, piece in events:
        queue.put_nowait(piece)


async def _answer(engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request on one connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ", 2)[1]
        length = next((int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        if path == "/v1/completions":
            await _stream(engine, body, writer)
        else:
            data = json.dumps({"data": [{"id": "model", "object": "model"}]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client is gone: its request still runs to its end, as in the pipeline's own loop
    finally:
        writer.close()


async def _stream(engine: Engine, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    prompt_tokens, pieces = engine.submit(body)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
    made, done = 0, False
    while not done:
        text, tokens, done = await pieces.get()
        made += tokens
        choice = {"index": 0, "text": text, "finish_reason": "length" if done else None}
        writer.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": made}
    writer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")


async def main() -> None:
    """Load, then serve until the process is ended."""
    threads, streams, _, port = map(int, sys.argv[2:6])
    guesses = "".join(sys.argv[6:]).removeprefix("draft=")
    engine = Engine(sys.argv[1], threads, streams, guesses, asyncio.get_running_loop())
    server = await asyncio.start_server(lambda reader, writer: _answer(engine, reader, writer), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
