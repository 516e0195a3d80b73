"""Speculation beside that of other servers: answers that can be guessed and answers that can't, one at a time, in turns."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.evaluation.contestants import Contestant
from headrace.evaluation.guessable_texts import guessable_tasks
from headrace.evaluation.measures import Comparison, Measure, Progress
from headrace.evaluation.streaming_client import RequestFailedError, Stream, fetch_json, parse_url, stream
from headrace.models.catalog import find_model, open_model
from headrace.text.chat_template import ChatTemplate, Conversation
from headrace.text.open_tokenizer import open_tokenizer

_FEWEST = 16
"""Tokens of an answer that is long enough for a rate."""

_FRESH = 0.6
"""Answers that say less than this for the first time have no rate: a server whose arithmetic derails the model would look fast."""


@dataclass(frozen=True, slots=True)
class SpeculationRounds:
    """Tokens/s of single greedy answers by kind of task, from the first token on.

    Every server gets the same token ids; each round asks for others, so that nobody knows an answer from the round before.
    ``output``: most tokens of an answer; it may end before.
    """

    model: str
    rounds: int
    output: int
    up: Mapping[str, Contestant]
    progress: Progress

    def run(self) -> Comparison:
        """Everything, rounds outermost, the order turned round each time."""
        notes: list[str] = []
        measures: dict[str, Measure] = {}
        done = 0
        for number in range(self.rounds):
            names = list(self.up) if number % 2 == 0 else list(self.up)[::-1]
            for task, prompt in _rendered(self.model, guessable_tasks(number)).items():
                for name in names:
                    self.progress(f"{name}: {task}", done, self.rounds * len(names) * 5)
                    measure = measures.setdefault(task, Measure(task, "output tok/s", {one: [] for one in self.up}))
                    measure.values[name].append(self._rate(name, f"{task}, round {number + 1}", prompt, notes))
                    done += 1
        return Comparison(list(measures.values()), notes)

    def _rate(self, name: str, what: str, prompt: Sequence[int], notes: list[str]) -> float:
        """NaN and a note where the request failed or the answer is too short to be timed."""
        try:
            found = asyncio.run(_answer(self.up[name].url, prompt, self.output))
        except RequestFailedError as error:
            notes.append(f"{name}, {what}: {error}")
            return math.nan
        tokens = found.usage.completion_tokens if found.usage is not None else 0
        if tokens < _FEWEST or len(found.times) < 2:
            notes.append(f"{name}, {what}: an answer of {tokens} tokens says nothing of speed")
            return math.nan
        text = "".join(found.text)
        if (fresh := fresh_share(text)) < _FRESH:
            notes.append(f"{name}, {what}: goes round in circles ({fresh:.0%} of three words are new), which anybody can guess")
            return math.nan
        return (tokens - 1) / (found.times[-1] - found.times[0])


def fresh_share(text: str) -> float:
    """Of all three adjacent words of a text, how many are none that stood before."""
    words = text.split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) / len(triples) if triples else 1.0


async def _answer(url: str, prompt: Sequence[int], tokens: int) -> Stream:
    endpoint = parse_url(url)
    listing = await fetch_json(endpoint, "GET", "/v1/models")
    body = {
        "model": listing["data"][0]["id"], "prompt": list(prompt), "max_tokens": tokens, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    return await stream(endpoint, "/v1/completions", body)


def _rendered(name: str, texts: Mapping[str, str]) -> dict[str, list[int]]:
    """Token ids of conversations that begin with these texts."""
    model = open_model(find_model(name))
    tokenizer = open_tokenizer(model.tokenizer_source)
    template = ChatTemplate(model.chat_template, tokenizer)
    try:
        marked = {task: template.render(Conversation([{"role": "user", "content": text}])) for task, text in texts.items()}
    finally:
        template.close()
    return {task: tokenizer.encode_template(one) for task, one in marked.items()}
