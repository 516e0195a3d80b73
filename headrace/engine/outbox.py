"""What goes back to clients: one output a choice and step, prompt logprobs once, the best of best_of at the end."""

from __future__ import annotations

import numpy as np

from headrace.engine.request import Choice, LiveRequest
from headrace.engine.taking import Taken
from headrace.engine.wire import FinishReason, TokenOutput


class Outbox:
    """Collects outputs until the step's message is made."""

    def __init__(self) -> None:
        self._outputs: list[TokenOutput] = []

    def __len__(self) -> int:
        return len(self._outputs)

    def take(self) -> list[TokenOutput]:
        """Everything collected; the outbox is empty afterwards."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def tokens(self, choice: Choice, taken: Taken) -> None:
        """A choice goes on with these tokens."""
        self._emit(choice, taken)

    def finish(self, choice: Choice, reason: FinishReason, last: Taken | None = None) -> None:
        """A choice ends, with ``last`` tokens or without. The choice leaves its request's open ones."""
        choice.finish = reason
        request = choice.request
        del request.open[choice.index]
        request.ended.append(choice)
        self._emit(choice, last if last is not None else Taken([]))
        for index in range(1, request.copies + 1):
            self._send(request, TokenOutput(request.submit.request_id, index, [], finish=reason))
        if request.ranked and not request.open:
            self._emit_best(request)

    def embedding(self, choice: Choice) -> None:
        """An embedding is complete: the sum of its rows (one, where the model pools the last), scaled to length 1."""
        assert choice.pooled is not None, "an embedding has rows"
        length = float(np.sqrt(np.sum(choice.pooled * choice.pooled)))
        vector = choice.pooled / length if length > 0 else choice.pooled
        choice.finish = "stop"
        del choice.request.open[choice.index]
        self._send(choice.request, TokenOutput(choice.request.submit.request_id, 0, [], finish="stop", embedding=vector.tolist()))

    def _emit(self, choice: Choice, taken: Taken) -> None:
        request = choice.request
        if request.ranked:
            choice.held += taken.tokens
            choice.held_logprobs += taken.logprobs or ()
            choice.drafted += taken.drafted
            choice.accepted += taken.accepted
            return
        output = TokenOutput(
            request.submit.request_id, choice.index, taken.tokens, taken.logprobs, None, choice.finish, choice.stop_token,
            drafted=taken.drafted, accepted=taken.accepted,
        )  # fmt: skip
        self._send(request, output)

    def _emit_best(self, request: LiveRequest) -> None:
        ranking = sorted(request.ended, key=lambda choice: (-_mean_logprob(choice), choice.index))
        wanted = request.params.top_logprobs is not None
        for rank, choice in enumerate(ranking[: request.params.n]):
            logprobs = choice.held_logprobs if wanted else None
            output = TokenOutput(
                request.submit.request_id, rank, choice.held, logprobs, None, choice.finish, choice.stop_token,
                drafted=choice.drafted, accepted=choice.accepted,
            )  # fmt: skip
            self._send(request, output)

    def _send(self, request: LiveRequest, output: TokenOutput) -> None:
        """Queue an output; the request's first one also carries what is said once."""
        if not request.first_sent:
            request.first_sent = True
            waited = None if request.started is None else request.started - request.arrival
            scored = request.prompt_logprobs if request.params.prompt_logprobs is not None and not request.submit.embed else None
            output = TokenOutput(
                output.request_id, output.choice, output.tokens, output.logprobs, scored, output.finish, output.stop_token,
                request.cached_tokens, output.embedding, waited, output.drafted, output.accepted,
            )  # fmt: skip
        self._outputs.append(output)


def _mean_logprob(choice: Choice) -> float:
    sampled = choice.logprob_count
    return choice.logprob_sum / sampled if sampled else float("-inf")
