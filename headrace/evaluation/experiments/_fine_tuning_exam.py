"""What is asked of an adapter after training: the loss of held-out answers as requests see it, and answers to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headrace.engine.llm import LLM
from headrace.engine.sampling_params import SamplingParams
from headrace.evaluation.signature_task import Exercise
from headrace.models.catalog import find_model, open_model
from headrace.text.chat_template import ChatTemplate
from headrace.text.lessons import Lesson, lesson
from headrace.text.open_tokenizer import open_tokenizer
from headrace.training.dataset_file import make_sample, write_dataset


def write_lessons(model: str, path: Path, tasks: Sequence[Exercise]) -> list[Lesson]:
    """Make a data file of exercises, and tell what it holds."""
    opened = open_model(find_model(model))
    tokenizer = open_tokenizer(opened.tokenizer_source)
    template = ChatTemplate(opened.chat_template, tokenizer)
    try:
        lessons = [lesson(template, tokenizer, one.conversation, [2]) for one in tasks]
    finally:
        template.close()
    write_dataset(path, (make_sample(one.tokens, one.weights) for one in lessons), vocab=tokenizer.vocab_size)
    return lessons


def held_out_loss(llm: LLM, lessons: Sequence[Lesson], adapter: str | None) -> float:
    """Mean loss of the learnt tokens, as requests see it."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    found = llm.generate([one.tokens for one in lessons], params, adapters=adapter)
    total, count = 0.0, 0
    for generation, one in zip(found, lessons, strict=True):
        assert generation.prompt_logprobs is not None
        for logprob, weight in zip(generation.prompt_logprobs, one.weights[1:], strict=True):
            total -= logprob.logprob * weight
            count += weight > 0
    return total / count


def exact_answers(llm: LLM, tasks: Sequence[Exercise], adapter: str | None) -> float:
    """Answers that are right to the letter, in %."""
    params = SamplingParams(max_tokens=40, temperature=0.0)
    found = llm.generate([llm.render(one.question) for one in tasks], params, adapters=adapter)
    right = sum(generation.answers[0].text.strip() == one.answer for generation, one in zip(found, tasks, strict=True))
    return 100 * right / len(tasks)
