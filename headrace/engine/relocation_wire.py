"""Messages about requests that change from one engine to another, and the unions of all messages of the wire."""

from __future__ import annotations

import msgspec

from headrace.engine.wire import EngineInbound, EngineOutbound, FinishReason, Gauges, Submit, TokenLogprob
from headrace.placement.roles import Role


class ChoiceState(msgspec.Struct, frozen=True):
    """One choice as another engine needs it to go on with the same bits.

    ``tokens``: what was sampled. ``computed``: positions whose keys and values lie in ``pages``, which are numbers of the move's
    pages. ``forked``: it waits for the prompt that the request's first open choice computes. ``pooled``: an embedding's sum so
    far, float64. ``held``: outputs kept back until best_of is decided. What a grammar or a penalty knows is found again from
    ``tokens``, as is the counter of the random stream.
    """

    index: int
    tokens: list[int] = msgspec.field(default_factory=list)
    computed: int = 0
    pages: list[int] = msgspec.field(default_factory=list)
    scored: int = 0
    charged: int = 0
    forked: bool = False
    finish: FinishReason | None = None
    stop_token: int | None = None
    logprob_sum: float = 0.0
    logprob_count: int = 0
    held: list[int] = msgspec.field(default_factory=list)
    held_logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    pooled: bytes | None = None
    pooled_rows: int = 0


class FullPages(msgspec.Struct, frozen=True):
    """What the full pages of a leaving choice hold: the prompt and these ``tokens`` behind it, ``count`` pages of both together."""

    index: int
    count: int
    tokens: list[int]


class RequestState(msgspec.Struct, frozen=True):
    """A request between two engines: everything but the bytes of its pages.

    ``elapsed``: seconds since it arrived; ``waited``: of these until its first step, ``None`` before that.
    ``said``: its first output has been sent, with what is said only once. Choices that are not named were cancelled.
    """

    submit: Submit
    choices: list[ChoiceState]
    elapsed: float = 0.0
    waited: float | None = None
    cached_tokens: int = 0
    said: bool = False
    prompt_logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)


class Leave(msgspec.Struct, tag="leave", frozen=True):
    """Begin to give a request away as move ``move``; ``None``: choose one that fits in ``room`` pages.

    Answered by Leaving or Stays. ``address``: where the other engine takes pages.
    """

    move: int
    request_id: int | None
    room: int
    address: str


class Leaving(msgspec.Struct, tag="leaving", frozen=True):
    """This request would leave. ``pages`` and ``reserve``: what the other engine needs for it, filled and promised.

    ``full``: what is in pages that will never change, so that the other engine can say which it has.
    """

    move: int
    request_id: int
    pages: int
    reserve: int
    full: list[FullPages] = msgspec.field(default_factory=list)


class Stays(msgspec.Struct, tag="stays", frozen=True):
    """The source ends a move before its last stage: the request goes on there, or has ended."""

    move: int
    reason: str


class Expect(msgspec.Struct, tag="expect", frozen=True):
    """Make room for a request that may come. Answered by Expected, when its grammar is compiled.

    ``full``: pages that need not be sent if they are known here.
    """

    move: int
    submit: Submit
    pages: int
    reserve: int
    full: list[FullPages] = msgspec.field(default_factory=list)


class Expected(msgspec.Struct, tag="expected", frozen=True):
    """The answer to Expect; ``problem`` set: no room, or it can't run here.

    ``known``: by choice, numbers of the first of its pages, which are here and held for it.
    """

    move: int
    problem: str | None = None
    known: dict[int, list[int]] = msgspec.field(default_factory=dict)


class Proceed(msgspec.Struct, tag="proceed", frozen=True):
    """The other engine has made room: copy, but for what it has (``known`` as in Expected)."""

    move: int
    known: dict[int, list[int]] = msgspec.field(default_factory=dict)


class Departed(msgspec.Struct, tag="departed", frozen=True):
    """The request takes part in no step here any more; its pages stay until Release or Return. No output follows this message.

    ``pages``: that were sent; ``spared``: that the other engine had.
    """

    move: int
    state: RequestState
    stages: int
    pages: int
    sent_bytes: int
    spared: int = 0
    spared_bytes: int = 0


class Adopt(msgspec.Struct, tag="adopt", frozen=True):
    """Run this request from here on. ``move`` 0: nothing was sent, compute what is missing. Answered by Adopted."""

    move: int
    state: RequestState


class Adopted(msgspec.Struct, tag="adopted", frozen=True):
    """The request runs here, and outputs follow; ``problem`` set: it does not, and nothing of it is left here."""

    move: int
    request_id: int
    problem: str | None = None


class Release(msgspec.Struct, tag="release", frozen=True):
    """The other side has the request: forget what the move still holds. Unknown moves are ignored."""

    move: int


class Return(msgspec.Struct, tag="return", frozen=True):
    """The other side does not have it: take the request back, at whatever stage the move is. Unknown moves are ignored."""

    move: int


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Say that you live."""

    number: int


class Pong(msgspec.Struct, tag="pong", frozen=True):
    """The engine lives, and this is its state. ``refused``: connections for pages that it turned away so far, by reason."""

    number: int
    gauges: Gauges
    refused: dict[str, int] = msgspec.field(default_factory=dict)


class WorkerRole(msgspec.Struct, tag="worker_role", frozen=True):
    """From the worker of another machine and not from its engine, before that says anything: which work it is there for."""

    role: Role


class Dismissed(msgspec.Struct, tag="dismissed", frozen=True):
    """To the worker of another machine and not to its engine: the server does not take it. ``code``: of the table of errors."""

    code: str
    message: str


RelocationCall = Leave | Expect | Proceed | Adopt | Release | Return | Ping
RelocationNews = Leaving | Stays | Expected | Departed | Adopted | Pong
ApiMessage = EngineInbound | Leave | Expect | Proceed | Adopt | Release | Return | Ping | Dismissed
EngineMessage = EngineOutbound | Leaving | Stays | Expected | Departed | Adopted | Pong | WorkerRole
