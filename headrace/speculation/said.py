"""Proposers that know what was said elsewhere: in recent answers of the same tenant, and in what the caller expects to get."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from headrace.speculation.lookup import END, GRADES, Follower
from headrace.speculation.occurrences import Match, Occurrences
from headrace.speculation.proposer import MOST_DRAFTED, Accepted, Ask, Proposal, Stream

LOG_TOKENS = 8192  # of one tenant's answers to one template
MOST_LOGS = 32  # which together take some 10 MiB
_TEMPLATE_TOKENS = 16  # prompts that begin with the same ones count as of one template
_LEAD = 4  # of the prompt, kept before an answer, so that its beginning can be found


class RecentAnswers:
    """What followed the same tokens in recent answers of the same tenant, with the same adapters, to prompts that begin alike.

    Nothing is ever learnt from one tenant for another. Bounded: the newest tokens of the templates used last.
    """

    name = "answers"
    grades: tuple[float, ...] = GRADES
    light = True
    depth = MOST_DRAFTED

    def __init__(self) -> None:
        self._logs: OrderedDict[Hashable, Occurrences] = OrderedDict()
        self._templates: dict[int, Hashable] = {}
        self._followers: dict[int, tuple[Follower, int]] = {}

    def serves(self, stream: Stream) -> bool:
        """Any."""
        return True

    def price(self, asks: Sequence[Ask]) -> float:
        """Nothing."""
        return 0.0

    def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
        """Behind the longest match."""
        return [self._propose(*ask) for ask in asks] if self._logs else [None] * len(asks)

    def accepted(self, news: Sequence[Accepted]) -> None:
        """Answers are entered when they end."""

    def ended(self, stream: Stream) -> None:
        """Remember the answer."""
        self._followers.pop(stream.stream_id, None)
        self._templates.pop(stream.stream_id, None)
        answer = stream.tokens[stream.prompt_length :]
        if len(answer) < _LEAD:
            return
        key = _template(stream)
        log = self._logs.pop(key, None)
        if log is None:
            log = Occurrences([])
        elif len(log.tokens) + len(answer) > LOG_TOKENS:  # who follows the old one goes on with it
            log = Occurrences(log.tokens[-LOG_TOKENS // 2 :])
        log.tokens += stream.tokens[max(0, stream.prompt_length - _LEAD) : stream.prompt_length]
        log.tokens += answer[-LOG_TOKENS // 2 :]
        log.tokens.append(END)
        log.catch_up()
        self._logs[key] = log
        if len(self._logs) > MOST_LOGS:
            self._logs.popitem(last=False)

    def _propose(self, stream: Stream, most: int) -> Proposal | None:
        key = self._templates.get(stream.stream_id)
        if key is None:
            key = self._templates[stream.stream_id] = _template(stream)
        log = self._logs.get(key)
        if log is None:
            return None
        follower, seen = self._followers.get(stream.stream_id, (None, 0))
        if follower is None or follower.occurrences is not log:
            follower, seen = Follower(log), 0
        length = len(stream.tokens)
        self._followers[stream.stream_id] = follower, length
        return follower.propose(stream, most, length - seen)


class ExpectedAnswer:
    """What the caller expects to get (``prediction``): from its beginning, and wherever the answer comes back to it."""

    name = "prediction"
    grades: tuple[float, ...] = (0.80, 0.82, 0.85, 0.90, 0.93, 0.95, 0.96)
    light = True
    depth = MOST_DRAFTED

    def __init__(self) -> None:
        self._followers: dict[int, tuple[Follower, int]] = {}

    def serves(self, stream: Stream) -> bool:
        """Those with a prediction."""
        return len(stream.prediction) > 0

    def price(self, asks: Sequence[Ask]) -> float:
        """Nothing."""
        return 0.0

    def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
        """What follows in the expected answer."""
        return [self._propose(*ask) for ask in asks]

    def accepted(self, news: Sequence[Accepted]) -> None:
        """Nothing is to be learnt."""

    def ended(self, stream: Stream) -> None:
        """Forget it."""
        self._followers.pop(stream.stream_id, None)

    def _propose(self, stream: Stream, most: int) -> Proposal | None:
        follower, seen = self._followers.get(stream.stream_id, (None, stream.prompt_length))
        if follower is None:
            expected = Occurrences(list(stream.prediction))
            expected.catch_up()
            follower = Follower(expected, Match(0, 0))
        length = len(stream.tokens)
        self._followers[stream.stream_id] = follower, length
        return follower.propose(stream, most, length - seen)


class ForcedTokens:
    """What a stream's grammar leaves no choice about: punctuation and names of a JSON schema, say."""

    name = "grammar"
    grades: tuple[float, ...] = (0.85,)
    light = True
    depth = MOST_DRAFTED

    def serves(self, stream: Stream) -> bool:
        """Those with a grammar."""
        return stream.forced is not None

    def price(self, asks: Sequence[Ask]) -> float:
        """Nothing."""
        return 0.0

    def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
        """The tokens that must come, cut as the tokenizer would cut them."""
        return [self._propose(*ask) for ask in asks]

    def accepted(self, news: Sequence[Accepted]) -> None:
        """The grammar knows."""

    def ended(self, stream: Stream) -> None:
        """Nothing was kept."""

    def _propose(self, stream: Stream, most: int) -> Proposal | None:
        tokens = stream.forced()[:most] if stream.forced is not None else ()
        return Proposal(tokens, [0] * len(tokens)) if tokens else None


def _template(stream: Stream) -> Hashable:
    return stream.tenant, stream.root, tuple(stream.tokens[: min(_TEMPLATE_TOKENS, stream.prompt_length)])
