"""What one prompt gets in the Python API, put together from the engine's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import AdapterUse, FinishReason, TokenLogprob, TokenOutput
from headrace.text.text_stream import TextStream
from headrace.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Answer:
    """One choice: its text, its tokens, and why it ended (``None`` while it goes on).

    ``logprobs`` follow ``tokens`` when ``top_logprobs`` was asked for. A stop string ends the text before itself; the tokens
    that spelt it stay in ``tokens``.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish: FinishReason | None = None


@dataclass(slots=True)
class Generation:
    """Everything one prompt got; ``prompt_logprobs`` begin at the prompt's second token.

    ``cached_tokens``: of the prompt, those whose pages were found instead of computed.
    """

    prompt_tokens: list[int]
    answers: list[Answer]
    prompt_logprobs: list[TokenLogprob] | None = None
    cached_tokens: int = 0

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.answers[0].text

    @property
    def tokens(self) -> list[int]:
        """Tokens of the first answer."""
        return self.answers[0].tokens

    @property
    def finish(self) -> FinishReason | None:
        """Why the first answer ended."""
        return self.answers[0].finish


class Job:
    """A request under way: detokenises as outputs come and notices stop strings.

    ``open``: choices that go on. ``embedding`` is filled instead of answers when one was asked for.
    """

    def __init__(
        self,
        request_id: int,
        prompt: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        adapters: Sequence[AdapterUse] = (),
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.adapters = list(adapters)
        self.generation = Generation(prompt, [_empty(params) for _ in range(params.n)])
        self.embedding: list[float] = []
        self.open = set(range(params.n))
        self._texts = [TextStream(tokenizer, params.stop) for _ in range(params.n)]

    def take(self, output: TokenOutput) -> bool:
        """Add an output; True when a stop string has just ended its choice, which the engine must be told."""
        if output.prompt_logprobs is not None:
            self.generation.prompt_logprobs = output.prompt_logprobs
        self.generation.cached_tokens = max(self.generation.cached_tokens, output.cached_tokens)
        if output.embedding is not None:
            self.embedding = output.embedding
        if output.choice not in self.open:
            return False
        answer, text = self.generation.answers[output.choice], self._texts[output.choice]
        delta = text.push(output.tokens)
        used = len(delta.pieces)
        answer.tokens += output.tokens[:used]
        if answer.logprobs is not None and output.logprobs is not None:
            answer.logprobs += output.logprobs[:used]
        answer.text += delta.text
        if delta.finished_by_stop is not None:
            self._close(output.choice, "stop")
            return output.finish is None
        if output.finish is not None:
            last = text.finish()
            answer.text += last.text
            self._close(output.choice, "stop" if last.finished_by_stop is not None else output.finish)
        return False

    def _close(self, choice: int, reason: FinishReason) -> None:
        self.generation.answers[choice].finish = reason
        self.open.discard(choice)


def _empty(params: SamplingParams) -> Answer:
    return Answer(logprobs=None if params.top_logprobs is None else [])
