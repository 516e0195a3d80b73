"""Who has which request: one record each, kept where the streams are. Enough of what was sent to go on anywhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.engine.relocation_wire import ChoiceState, RequestState
from headrace.engine.wire import Submit, TokenOutput

if TYPE_CHECKING:
    from headrace.instances.member import Member


@dataclass(slots=True, eq=False)
class Owned:
    """A request and its one owner. ``epoch`` grows with each change of hands.

    ``holder``: the engine that may send outputs for it; ``None`` while it is between two, or waits for one. ``tokens``: by choice,
    what was sent to its stream. ``closed``: choices that have ended or were cancelled. ``unsent``: cancels for whoever gets it.
    ``deaths``: engines that ended while they had it. ``move``: the one that it is part of.
    """

    submit: Submit
    arrived: float = field(default_factory=time.monotonic)
    holder: Member | None = None
    epoch: int = 0
    tokens: dict[int, list[int]] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    unsent: list[int | None] = field(default_factory=list)
    said: bool = False
    cached_tokens: int = 0
    deaths: int = 0
    move: int = 0

    @property
    def length(self) -> int:
        """Tokens that its sequences have by now, prompt and outputs."""
        return len(self.submit.prompt) + sum(len(tokens) for tokens in self.tokens.values())

    def give(self, holder: Member | None) -> None:
        """Change hands."""
        self.holder = holder
        self.epoch += 1

    def note(self, output: TokenOutput) -> None:
        """This has been sent to the stream."""
        self.said = True
        self.tokens.setdefault(output.choice, []).extend(output.tokens)
        if output.finish is not None:
            self.closed.add(output.choice)

    def state(self) -> RequestState:
        """The request as its stream knows it: what was sent stays sent, and everything else is computed again, to the same bits."""
        submit, elapsed = self.submit, time.monotonic() - self.arrived
        single = submit.embed or submit.params.max_tokens == 0
        most = 1 if single else max(submit.params.n, submit.params.best_of or 0)
        open_ = [index for index in range(most) if index not in self.closed]
        begun = any(self.tokens.get(index) for index in open_)
        charged = len(submit.prompt) if self.said else 0
        choices = [
            ChoiceState(index, list(self.tokens.get(index, ())), charged=charged, forked=not begun and index != open_[0])
            for index in open_
        ]
        return RequestState(submit, choices, elapsed, 0.0 if self.said else None, self.cached_tokens, self.said)
