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
_LOOK_EVERY = 8  # steps between two looks at what rows cost
_PATIENCE = 8  # steps without a right guess after which a stream is asked for every other token only, then every third …
_MOST_REST = 7
_BUCKETS = (0, 1, 2, 4, 8, 16, 32)
PROBING = 0.01  # of the time of steps: what proposers that cost time may take to find out whether they are worth it
FIRST_CREDIT = 0.1  # seconds that they may take of an engine's first steps, when nothing is known of them


class Speculating:
    """Proposers and what is known of them. One for each engine."""

    def __init__(self, proposers: Sequence[Proposer], scheduler: Scheduler) -> None:
        self._proposers = list(proposers)
        self._streams = self._until = 0
        self._least = 0.0
        self._light = [proposer.light for proposer in proposers]
        self._all_light = all(self._light)
        self._scheduler = scheduler
        self._acceptance = [Acceptance(proposer.grades) for proposer in proposers]
        self._proposed = self._drafted = self._accepted = 0
        self._foreseen = self._seconds = 0.0
        self._credit = FIRST_CREDIT  # seconds that may be spent to find out what proposers with a price are worth
        self._lengths = [0] * (MOST_DRAFTED + 1)  # streams by the tokens that were verified for them in one step
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
            matcher.forced if matcher is not None else None, choice.record if choice.request.params.temperature > 0.0 else b"",
        )  # fmt: skip
        authors = [author for author, proposer in enumerate(self._proposers) if proposer.serves(stream)]
        choice.drafting = Drafting(stream, most, [OwnRecord() for _ in self._proposers], authors)

    def propose(self, choices: Mapping[int, Choice]) -> None:
        """Ask for drafts of the streams that the next step may take part of; the scheduler decides how many tokens it verifies."""
        began = time.perf_counter()
        scheduler = self._scheduler
        scheduler.drafts = NO_DRAFTS
        self.last_seconds = 0.0
        items = scheduler.decodes
        if not items:
            return
        least = self._least_survival(items)
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
            drafting = choice.drafting
            if drafting is None:
                continue
            drafting.stream.tokens = choice.item.tokens  # a fork has got its own with its first token
            right = 0
            if drafting.proposal is not None:
                item_id = choice.item.item_id
                right = self._learn(drafting, (given.sampled[item_id], *given.accepted.get(item_id, ())), taken.drafted)
            if drafting.asked:
                drafting.asked = False
                drafting.misses = 0 if right else drafting.misses + 1
                drafting.rest = min(_MOST_REST, drafting.misses // _PATIENCE)
            self._lengths[taken.drafted] += 1
            if not self._all_light:
                news.append(Accepted(drafting.stream, len(given.accepted.get(choice.item.item_id, ())) + 1, taken.row))
        if not self._all_light:
            for proposer, light in zip(self._proposers, self._light, strict=True):
                if not light:
                    proposer.accepted(news)

    def _learn(self, drafting: Drafting, sampled: Sequence[int], drafted: int) -> int:
        """A step has sampled these tokens for a stream, after verifying ``drafted`` ones; how many guesses were right."""
        assert drafting.proposal is not None, "somebody proposed"
        tokens, grades, _ = drafting.proposal
        drafting.proposal = None
        acceptance, record = self._acceptance[drafting.author], drafting.records[drafting.author]
        right = 0
        for guess, grade, token in zip(tokens, grades, sampled, strict=False):
            correct = guess == token
            acceptance.compare(grade, record, right=correct)
            record.observe(acceptance.chance(grade), right=correct)
            acceptance.observe(grade, right=correct)
            if not correct:
                break
            right += 1
        if drafted:
            self._foreseen += sum((drafting.chances or ())[:drafted])
            self._drafted += drafted
            self._accepted += min(right, drafted)
        return right

    def ended(self, choice: Choice) -> None:
        """A choice is over."""
        if choice.drafting is not None:
            for proposer in self._proposers:
                proposer.ended(choice.drafting.stream)

    def gauges(self) -> SpeculationGauges:
        """Everything so far."""
        edges = zip((-1, *_BUCKETS), _BUCKETS, strict=False)
        lengths = {f"streams_{last}": sum(self._lengths[first + 1 : last + 1]) for first, last in edges}
        return SpeculationGauges(self._proposed, self._drafted, self._accepted, self._foreseen, self._seconds, **lengths)

    def _least_survival(self, items: Sequence[Item]) -> float:
        """The chance below which no guess pays; looked at anew when streams come or go, and now and then."""
        if len(items) != self._streams or not self._until:
            self._streams, self._until = len(items), _LOOK_EVERY
            self._least = least_survival(len(items), sum(item.computed for item in items), self._scheduler.cost)
        self._until -= 1
        return self._least

    def _ready(self, item: Item, choices: Mapping[int, Choice]) -> Drafting | None:
        """The item's drafting, if another token than the next can be wanted of it at all."""
        drafting = choices[item.item_id].drafting
        if drafting is None or item.generated == 0 or item.goal <= len(item.tokens):
            return None
        drafting.proposal = drafting.chances = None
        if drafting.rest and self._all_light:
            drafting.rest -= 1
            return None
        drafting.asked = True
        drafting.room = item.goal - len(item.tokens)
        return drafting

    def _ask(self, asked: Sequence[Drafting], least: float) -> None:
        """The best proposal for each: the one with the most tokens expected to be right. Who costs time is asked last."""
        light = self._light
        for drafting in asked:
            ask = _ask_of(drafting)
            for author in drafting.authors:
                if light[author]:
                    [proposal] = self._proposers[author].propose((ask,))
                    if proposal is not None:
                        self._consider(drafting, proposal, author, least)
        if not self._all_light:
            self._ask_heavy(asked, least)

    def _ask_heavy(self, asked: Sequence[Drafting], least: float) -> None:
        """Those that may cost time."""
        self._credit += PROBING * self._scheduler.cost.predict(*self._load(asked))
        for author, proposer in enumerate(self._proposers):
            served = [drafting for drafting in asked if author in drafting.authors] if not self._light[author] else []
            if not served:
                continue
            price = proposer.price([_ask_of(drafting) for drafting in served])
            chosen = served if price <= 0.0 else self._worth_asking(author, served, price)
            proposals = proposer.propose([_ask_of(drafting) for drafting in chosen]) if chosen else ()
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
        most = min(self._proposers[author].depth, max(drafting.most for drafting in poor))
        offer = Offer(len(poor), most, chance, price)
        if is_worth_asking(offer, margin, self._scheduler.cost):
            return poor
        alone = self._proposers[author].price([_ask_of(poor[0])])
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


def _ask_of(drafting: Drafting) -> Ask:
    return Ask(drafting.stream, min(drafting.most, drafting.room))


def _allowed(tokens: Sequence[int], matcher: Matcher | None) -> Sequence[int]:
    """The first of these tokens that a grammar does not forbid."""
    return tokens if matcher is None else tokens[: matcher.allowed(tokens)]
