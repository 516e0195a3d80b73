"""People who don't just ask: they leave, read slowly, send nonsense, load adapters, train, and cancel what they began."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from headrace.evaluation.soak.asks import Ask, essence
from headrace.evaluation.soak.plain_http import Address, Reply, form
from headrace.evaluation.soak.server import LOADED, SoakServer

_ENDED = frozenset({"completed", "failed", "cancelled", "expired", "succeeded", "incomplete"})
_LESSONS = [
    {"messages": [{"role": "user", "content": f"{word}?"}, {"role": "assistant", "content": f"the {word} wheel"}]}
    for word in ("red", "blue", "green", "black", "white", "pink")
]
_WRONG: tuple[tuple[str, bytes], ...] = (
    ("/v1/completions", b"{"), ("/v1/chat/completions", b'{"messages": 1}'), ("/v1/completions", b"[" * 50_000),
    ("/v1/completions", b'{"prompt": "a", "max_tokens": -1}'), ("/v1/completions", b'{"prompt": "a", "n": 1e400}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "regex": "("}'), ("/v1/nothing", b"{}"),
    ("/v1/fine_tuning/jobs", b'{"model": "nobody", "training_file": "file-1"}'), ("/v1/batches", b'{"input_file_id": "../x"}'),
    ("/v1/load_lora_adapter", b'{"lora_name": "x", "lora_path": "../../etc"}'), ("/v1/responses", b'{"input": []}'),
)  # fmt: skip


class Disturbers:
    """Each method is one act. What was not as it must be is added to ``faults``; ``acts`` counts by name."""

    def __init__(self, address: Address, server: SoakServer, asks: Sequence[Ask], expected: dict[int, str]) -> None:
        self.faults: list[str] = []
        self.acts: Counter[str] = Counter()
        self.taught = ""  # what a model says that was trained on the lessons: the same each time
        self._address = address
        self._model = server.name
        self._crowd = {"model": server.name, "prompt": "The mill", "n": 16, "temperature": 1, "seed": 4, "ignore_eos": True} | {
            "max_tokens": min(300, server.context // 7)
        }
        self._crowded = ""
        self._asks = asks
        self._expected = expected

    @property
    def light(self) -> Sequence[Callable[[random.Random], Awaitable[None]]]:
        """Acts for many people at once."""
        return self.leave, self.leave, self.dribble, self.wrong_call, self.slow_reader

    @property
    def heavy(self) -> Sequence[Callable[[random.Random], Awaitable[None]]]:
        """Acts of one person each: they need a name or a desk for themselves."""
        return self.adapter_comes_and_goes, self.batch, self.background, self.train, self.train_and_cancel

    async def leave(self, pick: random.Random) -> None:
        """Ask and hang up: at once, or somewhere in the answer."""
        ask = pick.choice(self._asks)
        data = json.dumps(ask.body | ({"max_tokens": 100} if "max_tokens" in ask.body else {})).encode()
        async with self._address.connection() as (reader, writer):
            writer.write(self._address.head("POST", ask.path, len(data)) + data)
            await writer.drain()
            if pick.random() < 0.7:
                try:
                    await asyncio.wait_for(reader.read(pick.randrange(1, 3000)), pick.random())
                except TimeoutError:
                    self.acts["left before the answer"] += 1
                    return
        self.acts["left in the answer"] += 1

    async def dribble(self, pick: random.Random) -> None:
        """Send half a request, byte by byte, and leave."""
        async with self._address.connection() as (_, writer):
            writer.write(self._address.head("POST", "/v1/completions", 1000))
            for _ in range(pick.randrange(1, 5)):
                writer.write(b'{"')
                await asyncio.sleep(0.05)
        self.acts["half a request"] += 1

    async def slow_reader(self, pick: random.Random) -> None:
        """Read a stream in small sips; it must come whole, and be right."""
        number, ask = pick.choice([(number, ask) for number, ask in enumerate(self._asks) if ask.streamed])
        data = json.dumps(ask.body).encode()
        async with asyncio.timeout(120), self._address.connection() as (reader, writer):
            writer.write(self._address.head("POST", ask.path, len(data)) + data)
            got = b""
            while piece := await reader.read(400):
                got += piece
                await asyncio.sleep(0.002)
        text = got.partition(b"\r\n\r\n")[2].split(b"\r\n")
        body = b"".join(text[1::2])  # chunk sizes and chunks in turns; no event holds a carriage return
        if essence(ask, Reply(200, body, True)) != self._expected[number]:
            self.faults.append(f"a slow reader of {ask.kind} got something else")
        self.acts["slow reader"] += 1

    async def wrong_call(self, pick: random.Random) -> None:
        """Nonsense gets its refusal."""
        path, body = pick.choice(_WRONG)
        reply = await self._address.call(path, body)
        if not (400 <= reply.status < 500 and reply.whole and "error" in reply.json()):
            self.faults.append(f"{body[:60]!r} to {path} got {reply.status}")
        self.acts["wrong call"] += 1

    async def adapter_comes_and_goes(self, pick: random.Random) -> None:
        """Load an adapter, ask it, and unload it, with requests of its name under way."""
        await self._fine("/v1/load_lora_adapter", {"lora_name": LOADED, "lora_path": f"kept/{LOADED}", "pin": pick.random() < 0.5})
        ask = {"model": LOADED, "prompt": "The wheel", "max_tokens": 8, "temperature": 0}
        under_way = [asyncio.create_task(self._address.call("/v1/completions", ask)) for _ in range(3)]
        await asyncio.wait(under_way[:1])
        await self._fine("/v1/unload_lora_adapter", {"lora_name": LOADED})
        answers = {task.result().json()["choices"][0]["text"] for task in under_way if (await task).status == 200}
        if len(answers) != 1:
            self.faults.append(f"an adapter that leaves gave {len(answers)} answers")
        self.acts["adapter loaded and unloaded"] += 1

    async def crowd(self, pick: random.Random) -> None:
        """Twice sixteen long answers at once: more than the pool holds beside training, so that some give way."""
        ask = Ask("crowd", "/v1/completions", self._crowd)
        for reply in await asyncio.gather(*(self._address.call(ask.path, ask.body) for _ in range(2))):
            told = essence(ask, reply)
            self._crowded = self._crowded or told or ""
            if told != self._crowded:
                self.faults.append(f"a crowd got {'no answer' if told is None else 'something else'}: {reply.status}")
        self.acts["crowd"] += 1

    async def batch(self, pick: random.Random) -> None:
        """Three lines of the fixed set as a batch; their answers are those of calls."""
        numbers = [n for n, ask in enumerate(self._asks) if ask.path in ("/v1/completions",) and not ask.streamed]
        chosen = pick.sample(numbers, 3)
        lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": self._asks[n].body} for n in chosen]
        file = await self._upload(lines, "batch")
        made = await self._fine("/v1/batches", {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"})
        ended = await self._ended(f"/v1/batches/{made['id']}")
        content = await self._address.call(f"/v1/files/{ended.get('output_file_id')}/content")
        answers = [json.loads(line) for line in content.body.splitlines()] if content.status == 200 else []
        for answer in answers:
            number, body = int(answer["custom_id"]), json.dumps(answer["response"]["body"]).encode()
            if essence(self._asks[number], Reply(answer["response"]["status_code"], body, True)) != self._expected[number]:
                self.faults.append(f"a batch's line of {self._asks[number].kind} got something else")
        if len(answers) != len(chosen):
            self.faults.append(f"a batch of {len(chosen)} lines {ended['status']} with {len(answers)} answers")
        for one in (file, ended.get("output_file_id")):
            await self._address.call(f"/v1/files/{one}", method="DELETE")
        self.acts["batch"] += 1

    async def background(self, pick: random.Random) -> None:
        """A response in the background, cancelled half of the time, then forgotten."""
        body = {"model": self._model, "input": "What turns?", "max_output_tokens": 40, "background": True}
        made = await self._fine("/v1/responses", body)
        if pick.random() < 0.5:
            await asyncio.sleep(pick.random() / 4)
            await self._address.call(f"/v1/responses/{made['id']}/cancel", b"")
        ended = await self._ended(f"/v1/responses/{made['id']}")
        if ended["status"] == "failed":
            self.faults.append(f"a background response failed: {ended.get('error')}")
        await self._address.call(f"/v1/responses/{made['id']}", method="DELETE")
        self.acts["background response"] += 1

    async def train(self, pick: random.Random) -> None:
        """Fine-tune on fixed lessons with a fixed seed; the model that comes out says the same whatever went on beside it."""
        job = await self._job(epochs=1)
        ended = await self._ended(f"/v1/fine_tuning/jobs/{job}")
        model = ended.get("fine_tuned_model")
        if model is None:
            self.faults.append(f"a fine-tuning job {ended['status']}: {ended.get('error')}")
            return
        ask = Ask(
            "fine-tuned", "/v1/completions", {"model": model, "prompt": "red?", "max_tokens": 16, "temperature": 0, "logprobs": 1}
        )
        told = (essence(ask, await self._address.call(ask.path, ask.body)) or "").replace(model, "")
        self.taught = self.taught or told
        if told != self.taught:
            self.faults.append("the same lessons with the same seed gave another model")
        await self._address.call(f"/v1/models/{model}", method="DELETE")
        self.acts["fine-tuning job"] += 1

    async def train_and_cancel(self, pick: random.Random) -> None:
        """A fine-tuning job that is cancelled somewhere."""
        job = await self._job(epochs=20)
        await asyncio.sleep(2 * pick.random())
        await self._address.call(f"/v1/fine_tuning/jobs/{job}/cancel", b"")
        ended = await self._ended(f"/v1/fine_tuning/jobs/{job}")
        if ended["status"] not in ("cancelled", "succeeded"):
            self.faults.append(f"a cancelled job {ended['status']}: {ended.get('error')}")
        self.acts["fine-tuning job cancelled"] += 1

    async def _job(self, epochs: int) -> str:
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 2, "lora_rank": 4}}}
        file = await self._upload(_LESSONS, "fine-tune")
        body = {"model": self._model, "training_file": file, "seed": 3, "method": method}
        return str((await self._fine("/v1/fine_tuning/jobs", body))["id"])

    async def _upload(self, lines: list[dict[str, Any]], purpose: str) -> str:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        body, kind = form({"purpose": purpose}, data)
        reply = await self._address.call("/v1/files", body, kind=kind)
        return str(reply.json()["id"])

    async def _fine(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = await self._address.call(path, body)
        if reply.status != 200:
            raise RuntimeError(f"{path} got {reply.status}: {reply.body[:200]!r}")
        found: dict[str, Any] = reply.json()
        return found

    async def _ended(self, path: str) -> dict[str, Any]:
        async with asyncio.timeout(600):
            while True:
                found: dict[str, Any] = (await self._address.call(path)).json()
                if found.get("status") in _ENDED:
                    return found
                await asyncio.sleep(0.2)
