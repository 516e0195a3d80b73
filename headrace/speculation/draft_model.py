"""A smaller model of the same vocabulary that guesses what the model will say.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (a draft model). Changed here: how many tokens
it guesses and for whom follows from expected goodput, as for every other proposer; and where tokens are drawn, the draft draws with
the stream's own random numbers, so that two models which nearly agree draw the same token, not only likely ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from headrace.kernels.interface import Bytes, ChainRunner, Float32, StepBatch
from headrace.kernels.sampler import REQUEST_DTYPE, Sampler
from headrace.memory.page_pool import PagePool
from headrace.scheduling.acceptance import Acceptance
from headrace.scheduling.cost import Cost
from headrace.speculation.proposer import Accepted, Ask, Proposal, Stream

DEPTH = 8
"""Most tokens guessed for one step: each costs a run of the draft model, one after the other."""

_EDGES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of the draft's likeliest token: between two of them lies a grade
_GREEDY = (0.15, 0.3, 0.45, 0.6, 0.72, 0.84, 0.92, 0.97)
_DRAWN = (0.3, 0.4, 0.5, 0.55, 0.65, 0.75, 0.85, 0.95)
_SPREAD = 16  # asks over which the price of reading a stream's prompt is spread
_ROWS = 256  # of prompts that are read in one run
_FORGETTING = 0.95


@dataclass(slots=True, eq=False)
class _Held:
    """What the draft model has of one stream: keys and values of ``tokens`` in ``pages``, of which the first ``sure`` are known to
    be the stream's own. ``guesses`` and their ``grades`` were made behind its first ``asked`` tokens."""

    pages: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    sure: int = 0
    asked: int = 0
    guesses: list[int] = field(default_factory=list)
    grades: list[int] = field(default_factory=list)

    def settle(self, tokens: Sequence[int]) -> int:
        """Find out how much is the stream's own, which now has these tokens; the newest never counts, it is to be run."""
        own = min(len(self.tokens), len(tokens) - 1)
        while self.sure < own and self.tokens[self.sure] == tokens[self.sure]:
            self.sure += 1
        self.sure = min(self.sure, len(tokens) - 1)
        return self.sure


@dataclass(slots=True)
class _Guess:
    """One stream while tokens are guessed for it. ``rows``: to be run next, the first of them at ``place``. ``chance``: that all
    guessed so far are right."""

    held: _Held
    stream: Stream
    rows: Sequence[int]
    place: int
    most: int
    tokens: list[int] = field(default_factory=list)
    grades: list[int] = field(default_factory=list)
    chance: float = 1.0


class DraftModel:
    """A proposer that runs a model. Its keys and values lie in pages of its own; those of a stream go when it ends or when others
    need the room, and are computed again when it is asked next.

    ``pages``: memory of its pool. ``cost``: what its own runs take, learnt on; ``served``: what steps of the model take that it
    guesses for. Streams longer than its context are left alone.
    """

    name = "draft"
    grades: tuple[float, ...] = _GREEDY + _DRAWN
    light = False
    depth = DEPTH

    def __init__(self, chain: ChainRunner, pages: Bytes, sampler: Sampler, cost: Cost, served: Cost) -> None:
        self._chain, self._pages, self._sampler = chain, pages, sampler
        self._cost, self._served = cost, served
        self._pool = PagePool(len(pages), chain.page_layout.tokens)
        self._held: OrderedDict[int, _Held] = OrderedDict()  # the least lately asked first
        self._known = Acceptance(self.grades)
        self._usual = 2.0  # tokens guessed at once, lately

    def serves(self, stream: Stream) -> bool:
        """Any that its context can hold."""
        return stream.prompt_length < self._chain.config.context_length

    def price(self, asks: Sequence[Ask]) -> float:
        """Seconds of the runs that are expected, and a part of what reading prompts takes that were not read yet."""
        count, pairs = len(asks), sum(len(ask.stream.tokens) for ask in asks)
        missing = sum(self._missing(ask.stream) for ask in asks)
        once = self._cost.predict(count, pairs, count)
        reading = self._cost.predict(count + missing, pairs + missing * pairs // (2 * count), count) - once if missing else 0.0
        return self._usual * once + reading / _SPREAD

    def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
        """Greedy guesses, as many as are expected to be worth another run."""
        busy = {ask.stream.stream_id for ask in asks}
        guesses = [self._begin(ask, busy) for ask in asks]
        live = [guess for guess in guesses if guess is not None]
        while live:
            self._forward([(guess.held, guess.rows, guess.place) for guess in live], ends=True)
            self._note(live, self._chain.logits(0, len(live)))
            live = self._worth_more(live)
        return [self._proposal(guess) for guess in guesses]

    def accepted(self, news: Sequence[Accepted]) -> None:
        """Learn how often guesses of a grade are right."""
        for stream, _, _ in news:
            held = self._held.get(stream.stream_id)
            if held is None or not held.grades:
                continue
            first = held.asked
            for guess, grade, token in zip(held.guesses, held.grades, stream.tokens[first:], strict=False):
                self._known.observe(grade, right=guess == token)
                if guess != token:
                    break
            held.grades = []

    def ended(self, stream: Stream) -> None:
        """Its pages are free."""
        held = self._held.pop(stream.stream_id, None)
        if held is not None:
            self._pool.release(held.pages)

    @property
    def held_pages(self) -> int:
        """Pages in use."""
        return self._pool.held

    def _missing(self, stream: Stream) -> int:
        """Rows to compute before the first guess can be made, its own left out."""
        held = self._held.get(stream.stream_id)
        return len(stream.tokens) - 1 - (held.settle(stream.tokens) if held is not None else 0)

    def _begin(self, ask: Ask, busy: Set[int]) -> _Guess | None:
        """Find out what is held of the stream and make room; ``None`` where there is none."""
        stream, tokens = ask.stream, ask.stream.tokens
        most = min(ask.most, DEPTH, self._chain.config.context_length - len(tokens))
        held = self._held.get(stream.stream_id) or _Held()
        if most < 1 or not self._grow(held, busy, len(tokens) + most):
            return None
        self._held[stream.stream_id] = held
        self._held.move_to_end(stream.stream_id)
        sure = held.settle(tokens)
        while len(tokens) - sure > _ROWS:
            self._forward([(held, tokens[sure : sure + _ROWS], sure)], ends=False)
            sure += _ROWS
        held.tokens[held.sure :] = tokens[held.sure :]
        held.sure, held.asked, held.guesses, held.grades = len(tokens) - 1, len(tokens), [], []
        return _Guess(held, stream, tokens[sure:], sure, most)

    def _grow(self, held: _Held, busy: Set[int], tokens: int) -> bool:
        """Pages for so many tokens; streams that were not asked for the longest time give way."""
        wanted = self._pool.pages_for(tokens) - len(held.pages)
        if wanted <= 0:
            return True
        while (pages := self._pool.allocate(wanted, held.pages[-1] if held.pages else None)) is None:
            oldest = next((number for number in self._held if number not in busy), None)
            if oldest is None:
                return False
            self._pool.release(self._held.pop(oldest).pages)
        held.pages += pages
        return True

    def _forward(self, slices: Sequence[tuple[_Held, Sequence[int], int]], *, ends: bool) -> None:
        """Rows of tokens from a position each; ``ends``: the last row of each goes through the head."""
        lengths = [len(tokens) for _, tokens, _ in slices]
        reach = [self._pool.pages_for(first + len(tokens)) for _, tokens, first in slices]
        starts = _sums(lengths)
        batch = StepBatch(
            token_ids=np.array([token for _, tokens, _ in slices for token in tokens], np.int32),
            positions=np.concatenate([np.arange(first, first + len(tokens), dtype=np.int32) for _, tokens, first in slices]),
            slice_starts=starts,
            page_starts=_sums(reach),
            page_ids=np.array(
                [page for (held, _, _), count in zip(slices, reach, strict=True) for page in held.pages[:count]], np.int32
            ),
            output_rows=starts[1:] - 1 if ends else np.zeros(0, np.int32),
        )
        began = perf_counter()
        self._chain.forward(batch, self._pages)
        rows = len(slices) if ends else 0
        pairs = sum(length * first + length * (length + 1) // 2 for (_, _, first), length in zip(slices, lengths, strict=True))
        self._cost.observe(sum(lengths), pairs, rows, perf_counter() - began)

    def _note(self, live: Sequence[_Guess], logits: Float32) -> None:
        """The likeliest token of each, or the one that its random number draws, and how sure the draft is."""
        drawn = self._draw(live, logits)
        for number, (guess, row) in enumerate(zip(live, logits, strict=True)):
            token = int(row.argmax())
            grade = int(np.searchsorted(_EDGES, 1.0 / float(np.exp(row - row[token]).sum())))
            if number in drawn:
                token, grade = drawn[number], grade + len(_GREEDY)
            guess.tokens.append(token)
            guess.grades.append(grade)
            guess.chance *= self._known.chance(grade)
            guess.place += len(guess.rows)
            guess.rows = [token]

    def _draw(self, live: Sequence[_Guess], logits: Float32) -> dict[int, int]:
        """By place in ``live``, tokens of the streams that draw; penalties, biases and grammars are left to who verifies."""
        places = [place for place, guess in enumerate(live) if guess.stream.record]
        if not places:
            return {}
        records = np.frombuffer(bytearray(b"".join(live[place].stream.record for place in places)), REQUEST_DTYPE)
        for name in ("history", "prompt_count", "output_count", "bias", "bias_count"):
            records[name] = 0
        for name in ("top_count", "given", "mask"):
            records[name] = -1
        records["row"] = places
        asked = (live[place] for place in places)
        records["index"] = [guess.held.asked - guess.stream.prompt_length + len(guess.tokens) for guess in asked]
        found = self._sampler.sample(logits, records).records
        return {place: token for place, token in zip(places, found["token"].tolist(), strict=True) if token >= 0}

    def _worth_more(self, live: Sequence[_Guess]) -> list[_Guess]:
        """For whom another token is guessed: where what it brings on average takes less time than a token takes anyway."""
        going = sorted((guess for guess in live if len(guess.tokens) < guess.most), key=lambda guess: -guess.chance)
        count, pairs = len(live), sum(guess.place for guess in live)
        token = self._served.predict(count, pairs, count) / count
        usual, brought, best = self._known.usual, 0.0, 0
        for number, guess in enumerate(going, 1):
            brought += guess.chance * usual
            row = self._served.predict(count + number, pairs, count + number) - self._served.predict(count, pairs, count)
            if brought * token > self._cost.predict(number, pairs, number) + row:
                best = number
        return going[:best]

    def _proposal(self, guess: _Guess | None) -> Proposal | None:
        if guess is None:
            return None
        guess.held.tokens += guess.tokens[:-1]
        guess.held.guesses, guess.held.grades = guess.tokens, guess.grades
        self._usual = _FORGETTING * self._usual + (1 - _FORGETTING) * len(guess.tokens)
        return Proposal(guess.tokens, guess.grades)


def _sums(lengths: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Where each of adjacent pieces begins, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(np.int32)
