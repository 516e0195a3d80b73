"""The engine's side of drafts: proposers are asked before a step is planned, and everybody learns from what it sampled."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from headrace.engine.request import Choice, Matcher
from headrace.engine.taking import Given
from headrace.engine.wire import SpeculationGauges
from headrace.scheduling.acceptance import Acceptance, OwnRecord, survival
from headrace.scheduling.goodput import NO_DRAFTS, Drafted, Margin, Offer, is_worth_asking, least_survival
from headrace.scheduling.item import Item
from headrace.scheduling.scheduler import Scheduler
from headrace.speculation.drafting import Drafting
from headrace.speculation.proposer import MOST_DRAFTED, Accepted, Ask, Proposal, Proposer, Stream

_HOPELESS = 0.97  # where only surer tokens than this would pay, nobody is asked
_BUCKETS = (0, 1, 2, 4, 8, 16, 32)
PROBING = 0.01  # of the time of steps: what proposers that cost time may take to find out whether they are worth it


class Speculating:
    """Proposers and what is known of them. One for each engine."""

    def __init__(self, proposers: Sequence[Proposer], scheduler: Scheduler) -> None:
        self._proposers = list(proposers)
        self._scheduler = scheduler
        self._acceptance = [Acceptance(proposer.grades) for proposer in proposers]
        self._proposed = self._drafted = self._accepted = 0
        self._foreseen = self._seconds = 0.0
        self._credit = 0.0  # seconds that may be spent to find out what proposers with a price are worth
        self._lengths = dict.fromkeys(_BUCKETS, 0)
        self.last_seconds = 0.0

    def open(self, choice: Choice) -> None:
        """A choice starts that may be drafted for, unless its request wants none."""
        submit = choice.request.submit
        most = MOST_DRAFTED if submit.speculation is None else submit.speculation
        if submit.embed or not most or choice.item.max_tokens < 3:
            return
        item, matcher = choice.item, choice.matcher
        stream = Stream(
            item.item_id, item.tokens, item.prompt_length, submit.tenant, item.root, submit.prediction,
            matcher.forced if matcher is not None else None,
        )  # fmt: skip
        choice.drafting = Drafting(stream, most, [OwnRecord() for _ in self._proposers])

    def propose(self, choices: Mapping[int, Choice]) -> None:
        """Ask for drafts of the streams that the next step may take part of; the scheduler decides how many tokens it verifies."""
        began = time.perf_counter()
        scheduler = self._scheduler
        scheduler.drafts = NO_DRAFTS
        self.last_seconds = 0.0
        items = scheduler.decodes
        if not items:
            return
        least = least_survival(len(items), sum(item.computed for item in items), scheduler.cost)
        if least > _HOPELESS:
            return
        asked = [drafting for item in items if (drafting := self._ready(item, choices)) is not None]
        if asked:
            self._ask(asked, least)
            drafts = {}
            for drafting in asked:
                if drafting.proposal is not None and drafting.chances:
                    tokens = _allowed(drafting.proposal.tokens[: len(drafting.chances)], choices[drafting.stream.stream_id].matcher)
                    if tokens:
                        drafts[drafting.stream.stream_id] = Drafted(tokens, drafting.chances[: len(tokens)])
            scheduler.drafts = drafts
        self.last_seconds = time.perf_counter() - began
        self._seconds += self.last_seconds

    def learn(self, given: Given) -> None:
        """A step has run and is committed."""
        news = []
        for choice, taken in given.taken:
            if choice.drafting is not None:
                item_id = choice.item.item_id
                choice.drafting.stream.tokens = choice.item.tokens  # a fork has got its own with its first token
                sampled = [given.sampled[item_id], *given.accepted.get(item_id, ())]
                self._learn(choice.drafting, sampled, taken.drafted)
                news.append(Accepted(choice.drafting.stream, len(sampled), taken.row))
        for proposer in self._proposers:
            proposer.accepted(news)

    def _learn(self, drafting: Drafting, sampled: Sequence[int], drafted: int) -> None:
        """A step has sampled these tokens for a stream, after verifying ``drafted`` ones."""
        proposal = drafting.proposal
        right = 0
        if proposal is not None:
            drafting.proposal = None
            acceptance, record = self._acceptance[drafting.author], drafting.records[drafting.author]
            for guess, grade, token in zip(proposal.tokens, proposal.grades, sampled, strict=False):
                correct = guess == token
                record.observe(acceptance.chance(grade), right=correct)
                acceptance.observe(grade, right=correct)
                if not correct:
                    break
                right += 1
            if drafted and drafting.chances is not None:
                self._foreseen += sum(drafting.chances[:drafted])
        self._drafted += drafted
        self._accepted += min(right, drafted)
        self._lengths[next(bucket for bucket in _BUCKETS if drafted <= bucket)] += 1

    def ended(self, choice: Choice) -> None:
        """A choice is over."""
        if choice.drafting is not None:
            for proposer in self._proposers:
                proposer.ended(choice.drafting.stream)

    def gauges(self) -> SpeculationGauges:
        """Everything so far."""
        lengths = {f"streams_{bucket}": count for bucket, count in self._lengths.items()}
        return SpeculationGauges(self._proposed, self._drafted, self._accepted, self._foreseen, self._seconds, **lengths)

    def _ready(self, item: Item, choices: Mapping[int, Choice]) -> Drafting | None:
        """The item's drafting, if another token than the next can be wanted of it at all."""
        drafting = choices[item.item_id].drafting
        if drafting is None or item.generated == 0 or item.goal <= len(item.tokens):
            return None
        drafting.proposal = drafting.chances = None
        drafting.room = item.goal - len(item.tokens)
        return drafting

    def _ask(self, asked: Sequence[Drafting], least: float) -> None:
        """The best proposal for each: the one with the most tokens expected to be right. Who costs time is asked last."""
        asks = {drafting.stream.stream_id: Ask(drafting.stream, min(drafting.most, drafting.room)) for drafting in asked}
        self._credit += PROBING * self._scheduler.cost.predict(*self._load(asked))
        for author, proposer in enumerate(self._proposers):
            price = proposer.price(tuple(asks.values()))
            chosen = list(asked) if price <= 0.0 else self._worth_asking(author, asked, price)
            proposals = proposer.propose([asks[drafting.stream.stream_id] for drafting in chosen]) if chosen else ()
            for drafting, proposal in zip(chosen, proposals, strict=True):
                if proposal is not None:
                    self._consider(drafting, proposal, author, least)

    def _worth_asking(self, author: int, asked: Sequence[Drafting], price: float) -> list[Drafting]:
        """For which streams a proposer that costs time is asked: all without a good guess where that pays, one to find out."""
        chance = self._acceptance[author].usual
        poor = [drafting for drafting in asked if sum(drafting.chances or ()) < chance]
        if not poor:
            return []
        margin = Margin(self._load(asked), float(len(asked)), self._scheduler.budget.logit_rows)
        offer = Offer(len(poor), max(drafting.most for drafting in poor), chance, price)
        if is_worth_asking(offer, margin, self._scheduler.cost):
            return poor
        alone = self._proposers[author].price([Ask(poor[0].stream, min(poor[0].most, poor[0].room))])
        if self._credit < alone:
            return []
        self._credit -= alone
        return poor[:1]

    def _load(self, asked: Sequence[Drafting]) -> tuple[int, int, int, int]:
        """A step that takes one row of each."""
        return len(asked), sum(len(drafting.stream.tokens) for drafting in asked), len(asked), 0

    def _consider(self, drafting: Drafting, proposal: Proposal, author: int, least: float) -> None:
        if proposal.parents:  # no step verifies several branches yet
            proposal = proposal.trunk
        chances = survival(self._acceptance[author], drafting.records[author], proposal.grades, least)
        self._proposed += len(proposal.tokens)
        if drafting.proposal is None or sum(chances) > sum(drafting.chances or ()):
            drafting.proposal, drafting.chances, drafting.author = proposal, chances, author


def _allowed(tokens: Sequence[int], matcher: Matcher | None) -> Sequence[int]:
    """The first of these tokens that a grammar does not forbid."""
    return tokens if matcher is None else tokens[: matcher.allowed(tokens)]
