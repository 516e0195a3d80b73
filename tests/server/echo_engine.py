"""A small engine on the real wire: answers with its prompt over and over, at a fixed pace. Started by the server under test."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from dataclasses import dataclass, field

from headrace.engine.transport import EngineSocket, PeerGone
from headrace.engine.wire import Cancel, Drain, FinishReason, Gauges, Ready, Start, StepOutputs, Submit, TokenLogprob, TokenOutput

VOCAB = 49152
CONTEXT = 2048
PAGES = 1000


@dataclass
class Live:
    """One choice that runs."""

    submit: Submit
    choice: int
    arrived: float
    sent: int = 0
    done: bool = field(default=False)


class EchoEngine:
    """Token *t* of choice *c* is prompt[(t + c) % len(prompt)]; one token a choice and step of ``pace`` seconds."""

    def __init__(self, connection: EngineSocket, pace: float) -> None:
        self.connection = connection
        self.pace = pace
        self.live: list[Live] = []
        self.draining = False
        self.steps = 0

    def run(self) -> None:
        while not (self.draining and not self.live):
            self.connection.wait(self.pace if self.live else None)
            for message in self.connection.receive():
                match message:
                    case Submit():
                        count = 1 if message.embed else message.params.n
                        self.live += [Live(message, choice, time.monotonic()) for choice in range(count)]
                    case Cancel():
                        gone = [one for one in self.live if self._hit(one, message)]
                        self.live = [one for one in self.live if one not in gone]
                        self.send([TokenOutput(one.submit.request_id, one.choice, [], finish="cancelled") for one in gone])
                    case Drain():
                        self.draining = True
                    case Start():
                        raise AssertionError("started twice")
            outputs = [self.advance(one) for one in self.live]
            self.live = [one for one in self.live if not one.done]
            if outputs:
                self.steps += 1
                self.send(outputs)

    @staticmethod
    def _hit(one: Live, cancel: Cancel) -> bool:
        return one.submit.request_id == cancel.request_id and cancel.choice in (None, one.choice)

    def send(self, outputs: list[TokenOutput]) -> None:
        gauges = Gauges(running=len(self.live), pages_total=PAGES, pages_free=PAGES - len(self.live), steps=self.steps)
        self.connection.send(StepOutputs(outputs, gauges))

    def advance(self, one: Live) -> TokenOutput:
        submit, params = one.submit, one.submit.params
        if submit.deadline is not None and time.monotonic() - one.arrived >= submit.deadline:
            one.done = True
            return TokenOutput(submit.request_id, one.choice, [], finish="deadline")
        if submit.embed:
            one.done = True
            vector = [float(sum(submit.prompt)), 2.0, 2.0, 1.0]
            return TokenOutput(submit.request_id, 0, [], finish="stop", embedding=vector)
        first = one.sent == 0
        prompt_logprobs = None
        if first and one.choice == 0 and params.prompt_logprobs is not None:
            prompt_logprobs = [TokenLogprob(token, -0.5, [(token, -0.5)]) for token in submit.prompt[1:]]
        tokens: list[int] = []
        finish: FinishReason | None = None
        if one.sent < params.max_tokens:
            tokens = [submit.prompt[(one.sent + one.choice) % len(submit.prompt)]]
            one.sent += 1
        if one.sent >= params.max_tokens:
            finish, one.done = "length", True
        logprobs = None
        if params.top_logprobs is not None:
            logprobs = [TokenLogprob(token, -0.25 - one.choice, [(token, -0.25), (1, -3.0)]) for token in tokens]
        return TokenOutput(
            submit.request_id, one.choice, tokens, logprobs, prompt_logprobs, finish, queue_seconds=0.001 if first else None
        )  # fmt: skip


def main() -> None:
    pace, descriptor = float(sys.argv[1]), int(sys.argv[2])
    connection = EngineSocket(socket.socket(fileno=descriptor))
    while True:
        connection.wait(None)
        if any(isinstance(message, Start) for message in connection.receive()):
            break
    connection.send(Ready("echo", CONTEXT, VOCAB, 4, PAGES, 16, 0.0))
    with contextlib.suppress(PeerGone):
        EchoEngine(connection, pace).run()
    connection.close()


if __name__ == "__main__":
    main()
