"""What speculation is measured with: texts that repeat and texts that don't, and drafts that are right as often as is wanted."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
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


class FixedTimes(Cost):
    """Every step takes the same time, so that whatever is proposed is verified: lengths are then fixed by who proposes."""

    def predict(self, tokens: int, pairs: int, rows: int, adapters: int = 0) -> float:
        """A step takes a second."""
        return 1.0 + 1e-9 * tokens

    def observe(self, tokens: int, pairs: int, rows: int, seconds: float, adapters: int = 0) -> None:
        """Nothing is learnt."""


class Forced:
    """Drafts whose tokens are right with a given chance each, whatever the model: acceptance by force, said where it is used.

    ``answers``: what is said behind each prompt without drafts. ``chances``: by prompt, in the order of ``answers``.
    """

    name = "forced"
    grades: tuple[float, ...] = tuple(step / 10 for step in range(10))
    light = False
    depth = MOST_DRAFTED

    def __init__(self, answers: Mapping[tuple[int, ...], Sequence[int]], chances: Sequence[float], seed: int) -> None:
        self._answers = answers
        self._chances = dict(zip(answers, chances, strict=True))
        self._rng = random.Random(seed)

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
        if prompt not in self._answers:
            return None
        chance, said = self._chances[prompt], len(stream.tokens) - stream.prompt_length
        tokens = self._answers[prompt][said : said + most]
        tokens = [token if self._rng.random() < chance else token ^ 1 for token in tokens]
        return Proposal(tokens, [int(10 * chance)] * len(tokens)) if tokens else None


@dataclass(frozen=True, slots=True)
class Spell:
    """A stretch of an engine's life: tokens sampled in so many seconds and steps."""

    tokens: int
    seconds: float
    steps: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def together(engine: Engine, submits: Sequence[Submit]) -> Spell:
    """Run requests at once; what was sampled while all of them were generating."""
    for submit in submits:
        engine.submit(submit)
    seen: set[int] = set()
    while len(seen) < len(submits):
        outputs = engine.step()
        seen |= {output.request_id for output in outputs.outputs} if outputs is not None else set()
    before, began = engine.gauges(), time.perf_counter()
    while engine.live == len(submits):
        engine.step()
    seconds, after = time.perf_counter() - began, engine.gauges()
    for submit in submits:
        engine.cancel(submit.request_id)
    engine.step()
    return Spell(after.generated_tokens - before.generated_tokens, seconds, after.steps - before.steps)


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
