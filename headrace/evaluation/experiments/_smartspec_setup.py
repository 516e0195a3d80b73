"""What speculation is measured with: texts that repeat and texts that don't, and drafts that are right as often as is wanted."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Gauges, Submit
from headrace.evaluation.trials import Bench
from headrace.models.catalog import OpenModel
from headrace.scheduling.cost import Cost
from headrace.speculation.proposer import MOST_DRAFTED, Accepted, Ask, Proposal, Stream
from headrace.text.chat_template import ChatTemplate, Conversation
from headrace.text.open_tokenizer import open_tokenizer

_STORY = (
    "The mill stood at the end of the valley, where the river narrowed between two walls of grey stone. In spring the water came "
    "down brown and fast, and the miller opened the upper gate only by a hand's breadth. In summer the wheel turned slowly, and "
    "the children of the village bathed in the tailrace below it. Nobody remembered who had built the first wheel, but the oldest "
    "beam in the house carried the year 1687 and two letters that no one could explain. "
)
_CODE = (
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n\n    def add(self, other):\n"
    "        return Point(self.x + other.x, self.y + other.y)\n\n    def scale(self, factor):\n"
    "        return Point(self.x * factor, self.y * factor)\n"
)
_NAMES = ("Ada", "Grace", "Edsger", "Barbara", "Donald", "Frances", "Tony")
_LIST = "\n".join(f"{name}: {name.lower()}@example.org" for name in _NAMES)

COPIES: Mapping[str, str] = {
    "copy": f"Repeat the following text exactly, word for word, and write nothing else:\n\n{_STORY}",
    "edit": f"Write this text again, with 'mill' replaced by 'forge', and change nothing else:\n\n{_STORY}",
    "code": f"Here is a class:\n\n```python\n{_CODE}```\n\nWrite the whole class again and add a docstring to it.",
    "extract": f"Repeat this list exactly as it is:\n\n{_LIST}",
}
TALKS: Mapping[str, str] = {
    "sky": "Why is the sky blue, and what changes at sunset? Explain in a few paragraphs.",
    "story": "Tell me a short story about a lighthouse keeper who finds a letter.",
    "advice": "How should I prepare for a long walk in the mountains?",
}

_PIECE = 8  # tokens that are timed as one


class FixedTimes(Cost):
    """Every step takes the same time, so that whatever is proposed is verified: lengths are then fixed by who proposes."""

    def predict(self, tokens: int, pairs: int, rows: int, adapters: int = 0) -> float:
        """A step takes a second."""
        return 1.0 + 1e-9 * tokens

    def observe(self, tokens: int, pairs: int, rows: int, seconds: float, adapters: int = 0) -> None:
        """Nothing is learnt."""


class Forced:
    """Drafts whose tokens are right with a given chance each, whatever the model: acceptance by force, said where it is used.

    ``answers``: what is said behind each prompt without drafts. ``chances``: by prompt, in the order of ``answers``. Which tokens
    of an answer are guessed rightly is drawn once, so that whoever verifies other lengths of the same drafts has the same luck.
    """

    name = "forced"
    grades: tuple[float, ...] = tuple(step / 10 for step in range(10))
    light = False
    depth = MOST_DRAFTED

    def __init__(self, answers: Mapping[tuple[int, ...], Sequence[int]], chances: Sequence[float], seed: int) -> None:
        rng = random.Random(seed)
        self._chances = dict(zip(answers, chances, strict=True))
        self._guesses = {
            prompt: [token if rng.random() < self._chances[prompt] else token ^ 1 for token in said]
            for prompt, said in answers.items()
        }

    def serves(self, stream: Stream) -> bool:
        """Any."""
        return True

    def price(self, asks: Sequence[Ask]) -> float:
        """Nothing."""
        return 0.0

    def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
        """What will be said, spoilt."""
        return [self._propose(*ask) for ask in asks]

    def accepted(self, news: Sequence[Accepted]) -> None:
        """Nothing is to be learnt."""

    def ended(self, stream: Stream) -> None:
        """Nothing was kept."""

    def _propose(self, stream: Stream, most: int) -> Proposal | None:
        prompt = tuple(stream.tokens[: stream.prompt_length])
        if prompt not in self._guesses:
            return None
        said = len(stream.tokens) - stream.prompt_length
        tokens = self._guesses[prompt][said : said + most]
        return Proposal(tokens, [min(9, int(10 * self._chances[prompt]))] * len(tokens)) if tokens else None


class Mark(NamedTuple):
    """After a step: tokens sampled, drafted tokens verified and seconds since the spell began."""

    tokens: int
    drafted: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Spell:
    """A stretch of an engine's life with so many streams, step by step."""

    streams: int
    marks: tuple[Mark, ...]

    @property
    def tokens(self) -> int:
        """Sampled in it."""
        return self.marks[-1].tokens

    @property
    def steps(self) -> int:
        """Run in it."""
        return len(self.marks) - 1

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.marks[-1].seconds


def undisturbed(spells: Sequence[Spell]) -> float:
    """Tokens a second of an answer that was made several times: of every few of its tokens the fastest time counts.

    What else the machine does in a moment of one round is no part of any mechanism, and hits other tokens in the next.
    """
    count = min(spell.tokens for spell in spells)
    ends = [*range(_PIECE, count, _PIECE), count]
    reached = [np.interp(ends, [mark.tokens for mark in one.marks], [mark.seconds for mark in one.marks]) for one in spells]
    return count / float(np.diff(np.array(reached), axis=1, prepend=0.0).min(axis=0).sum())


def priced(variants: Sequence[Sequence[Spell]]) -> list[float]:
    """Tokens a second of each variant, where a step takes what steps of as many rows take in all of them: their lower quartile.

    For drafts of other lengths on the same streams, which differ in nothing but rows.
    """
    seconds: dict[int, list[float]] = {}
    for spell in (spell for spells in variants for spell in spells):
        for rows, took in _steps(spell):
            seconds.setdefault(rows, []).append(took)
    price = {rows: float(np.quantile(times, 0.25)) for rows, times in seconds.items()}
    return [
        sum(spell.tokens for spell in spells) / sum(price[rows] for spell in spells for rows, _ in _steps(spell))
        for spells in variants
    ]


def _steps(spell: Spell) -> list[tuple[int, float]]:
    """Rows and seconds of each."""
    return [(spell.streams + now.drafted - last.drafted, now.seconds - last.seconds) for last, now in pairwise(spell.marks)]


def together(engine: Engine, submits: Sequence[Submit]) -> Spell:
    """Run requests at once; what was sampled while all of them were generating."""
    for submit in submits:
        engine.submit(submit)
    seen: set[int] = set()
    while len(seen) < len(submits):
        outputs = engine.step()
        seen |= {output.request_id for output in outputs.outputs} if outputs is not None else set()
    before, began = _counts(engine.gauges()), time.perf_counter()
    marks = [Mark(0, 0, 0.0)]
    while engine.live == len(submits):
        outputs = engine.step()
        seconds = time.perf_counter() - began
        tokens, drafted = _counts(outputs.gauges if outputs is not None else engine.gauges())
        marks.append(Mark(tokens - before[0], drafted - before[1], seconds))
    for submit in submits:
        engine.cancel(submit.request_id)
    engine.step()
    return Spell(len(submits), tuple(marks))


def _counts(gauges: Gauges) -> tuple[int, int]:
    return gauges.generated_tokens, gauges.speculation.drafted if gauges.speculation is not None else 0


def tasks(bench: Bench, texts: Mapping[str, str], tokens: int) -> dict[str, Submit]:
    """Greedy requests for so many tokens at most, as users of a chat would ask."""
    return rendered(bench.built.model, texts, tokens)


def rendered(model: OpenModel, texts: Mapping[str, str], tokens: int) -> dict[str, Submit]:
    """The same for any model."""
    tokenizer = open_tokenizer(model.tokenizer_source)
    template = ChatTemplate(model.chat_template, tokenizer)
    try:
        params = SamplingParams(max_tokens=tokens, temperature=0.0)
        marked = {name: template.render(Conversation([{"role": "user", "content": text}])) for name, text in texts.items()}
        return {name: Submit(1, tokenizer.encode_template(one), params) for name, one in marked.items()}
    finally:
        template.close()
