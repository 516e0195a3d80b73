"""What a model learns from a conversation: its tokens as they stand in a prompt, and which of them are its own to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.text.chat_template import ChatTemplate, Conversation, Fenced, Message
from headrace.text.marking import MarkedText
from headrace.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Lesson:
    """``tokens`` of a conversation; ``weights`` of predicting each: 1 for what is learnt, 0 for all else."""

    tokens: list[int]
    weights: list[float]


def lesson(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], learnt: Sequence[int]) -> Lesson:
    """The conversation with the contents of the messages ``learnt`` (places of answers, in order), each with its end token.

    Tokens are cut where an answer begins and ends, as they are when the model writes it, and what stands behind the last answer
    is left out. An answer that no special token ends is followed by the model's end of text, where the conversation ends.

    Errors: as :meth:`ChatTemplate.render`, and ``invalid_template`` when the template does not copy an answer as it is.
    """
    parts = _parts(template, messages, learnt)
    tokens: list[int] = []
    weights: list[float] = []
    for place, ids in enumerate(tokenizer.encode_parts(parts)):
        own = place % 2 == 1
        ended = place > 0 and not own and bool(ids) and tokenizer.is_special(ids[0])
        last = place == len(parts) - 1
        if last and not ended:
            ids = list(tokenizer.eos_ids[:1])  # noqa: PLW2901
            ended = bool(ids)
        elif last:
            ids = ids[:1]  # noqa: PLW2901
        tokens += ids
        weights += [1.0 if own or (ended and at == 0) else 0.0 for at in range(len(ids))]
    return Lesson(tokens, weights)


def _parts(template: ChatTemplate, messages: Sequence[Message], learnt: Sequence[int]) -> list[MarkedText]:
    """The rendered text cut before and behind each answer: other, answer, other, …, answer, other."""
    conversation = Conversation(messages, add_generation_prompt=False)
    plain = template.render(conversation).plain
    for trimmed in (False, True):
        fenced = template.render_fenced(conversation, learnt, trimmed=trimmed)
        parts = _cut(fenced)
        if len(parts) == 2 * len(learnt) + 1 and "".join(part.plain for part in parts) == plain:
            return parts
    raise HeadraceError("invalid_template", "the chat template changes answers, so that they can't be learnt as they are")


def _cut(fenced: Fenced) -> list[MarkedText]:
    pieces: list[str] = []
    for place, piece in enumerate(fenced.text.split(fenced.begin)):
        inner, found, rest = piece.partition(fenced.end)
        if bool(found) != (place > 0) or fenced.end in rest:
            return []
        pieces += [inner, rest] if found else [inner]
    return [MarkedText(piece, fenced.nonce) for piece in pieces]
